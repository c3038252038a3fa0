"""`export`: a delta for programs that know nothing of deltas."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import typer

from rlforget.cli import output
from rlforget.cli.options import Delta, DryRun, Force, Json, Seed, misused

if TYPE_CHECKING:
    from rlforget.delta.exporting import Adapter, Coordinates, MergekitModel, TaskVector

    Found: TypeAlias = Adapter | Coordinates | MergekitModel | TaskVector

Format = Literal["task-vector", "lora", "mergekit", "safetensors"]


def export(
    delta: Delta,
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder or file to create.", metavar="PATH")],
    form: Annotated[
        Format,
        typer.Option(
            "--format",
            help="task-vector: after − before, a folder of tensors. lora: a PEFT adapter. mergekit: the model after, "
            "with a configuration. safetensors: the changed coordinates, a file of plain tensors.",
        ),
    ],
    base: Annotated[
        Path | None,
        typer.Option(help="The checkpoint at either end; not needed for a self-contained delta.", metavar="CKPT"),
    ] = None,
    rank: Annotated[int | None, typer.Option(help="Of the adapter's matrices (lora).", min=1, metavar="R")] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(help="A module to adapt, by the end of its path; may be repeated (lora).", metavar="MODULE"),
    ] = None,
    save_rest: Annotated[
        bool, typer.Option("--save-rest", help="Save biases, norms and embeddings whole (lora).")
    ] = False,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16", "float64"], typer.Option(help="To store in (task-vector, lora).")
    ] = "float32",
    seed: Seed = 0,
    top: Annotated[int, typer.Option(help="List the N worst matrices (lora).", metavar="N", min=0)] = 0,
    force: Force = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Write a delta as a task vector, a LoRA adapter, a model for mergekit, or plain tensors."""
    from rlforget.delta.exporting import export_coordinates, export_lora, export_mergekit, export_task_vector
    from rlforget.delta.exporting.task_vector import DTYPES

    _check_options(form, base, rank, target=target, save_rest=save_rest, dtype=dtype, top=top)
    common: dict[str, Any] = {"base": base, "dry_run": dry_run, "force": force}
    found: Found
    with output.bar(f"exporting {delta}") as progress:
        common["progress"] = progress
        if form == "lora":
            assert rank is not None
            chosen: dict[str, Any] = {"rank": rank, "targets": target, "save_rest": save_rest, "seed": seed}
            found = export_lora(delta, out, dtype=DTYPES[dtype], **chosen, **common)
        elif form == "task-vector":
            found = export_task_vector(delta, out, dtype=DTYPES[dtype], **common)
        else:
            found = (export_mergekit if form == "mergekit" else export_coordinates)(delta, out, **common)
    if as_json:
        output.json_object({"format": form, **found.to_dict(), "out": None if dry_run else out})
        return
    output.line(found.table())
    _show_worst(found, top)
    output.written(out, dry_run=dry_run)


def _check_options(form: Format, base: Path | None, rank: int | None, **others: object) -> None:
    """Hold that the options are those of the format.

    Raises:
        BadParameter: One lacks, or goes with another format.
    """
    if form == "lora" and rank is None:
        raise misused("--rank", found="none", fix="Give it: a lora needs one.")
    if form == "mergekit" and base is None:
        raise misused("--base", found="none", fix="Name the base's folder: mergekit subtracts it.")
    taken = {"lora": {"rank", "target", "save_rest", "dtype", "top"}, "task-vector": {"dtype"}}.get(form, set())
    given = {"rank": rank, **others}
    for name, value in given.items():
        if value and value != "float32" and name not in taken:
            raise misused(
                f"--{name.replace('_', '-')}", found=f"the format {form}, which has none", fix="Leave it out."
            )


def _show_worst(found: Found, top: int) -> None:
    fits = getattr(found, "tensors", None)
    if not top or not isinstance(fits, dict):
        return
    worst = sorted(fits.items(), key=lambda item: -item[1].error)[:top]
    rows = [(name, str(fit.rank), f"{fit.error:.4g}", output.percent(fit.kept)) for name, fit in worst]
    output.line()
    output.table(("matrix", "rank", "error", "energy kept"), rows)
