"""`diff`, `apply`, `revert`: see what changed between two checkpoints, and carry it to others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlforget.cli import output
from rlforget.cli.options import Delta, DryRun, Force, Json, OutFolder

if TYPE_CHECKING:
    from rlforget.delta import Delta as LoadedDelta

Checkpoint = Annotated[Path, typer.Argument(help="A checkpoint folder or .safetensors file.")]

DIFFERENT = 3


def diff(
    before: Checkpoint,
    after: Checkpoint,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Save the delta, by custom as NAME.delta.safetensors.")
    ] = None,
    top: Annotated[int, typer.Option(help="List the N tensors that changed most.", metavar="N", min=0)] = 0,
    exit_code: Annotated[bool, typer.Option("--exit-code", help="Exit with 3 where something changed.")] = False,
    force: Force = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Show which coordinates changed between two checkpoints, bit for bit."""
    from rlforget.delta import diff as find_changes
    from rlforget.weights.atomic import check_free

    if out is not None:
        check_free(out, force=force)
    with output.step(f"comparing {before} with {after}"):
        delta = find_changes(before, after)
        stats = delta.stats()
    if out is not None and not dry_run:
        delta.save(out, force=force)
    largest = _most_changed(delta, top)
    if as_json:
        saved = None if dry_run else out
        output.json_object({**stats.to_dict(), "top": largest, "saved": saved})
    else:
        output.line(stats.table())
        if largest:
            output.line()
            rows = [(t["name"], f"{t['changed']:,}", f"{t['numel']:,}", output.percent(t["share"])) for t in largest]
            output.table(("tensor", "changed", "of", "share"), rows)
        if out is not None:
            output.written(out, dry_run=dry_run)
    if exit_code and delta.changed:
        raise typer.Exit(DIFFERENT)


def apply(
    weights: Checkpoint,
    delta: Delta,
    out: OutFolder,
    force: Force = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Write a new checkpoint with a delta applied: from before to after."""
    from rlforget.delta import apply as write

    _carry(write, weights, _load(delta), out, force=force, dry_run=dry_run, as_json=as_json)


def revert(
    weights: Checkpoint,
    delta: Delta,
    out: OutFolder,
    force: Force = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Write a new checkpoint with a delta taken back: from after to before."""
    from rlforget.delta import apply as write

    _carry(write, weights, _load(delta).invert(), out, force=force, dry_run=dry_run, as_json=as_json)


def _load(path: Path) -> LoadedDelta:
    from rlforget.delta import Delta as File

    return File.load(path)


def _carry(
    write: Callable[..., None],
    weights: Path,
    delta: LoadedDelta,
    out: Path,
    *,
    force: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    from rlforget.delta.patching import check_fits
    from rlforget.weights.atomic import check_free, check_new_folder

    (check_new_folder if weights.is_dir() else check_free)(out, force=force)
    with output.step(f"patching {weights}"):
        if dry_run:
            check_fits(weights, delta)
        else:
            write(weights, delta, out, force=force)
    if as_json:
        output.json_object({"changed": delta.changed, "numel": delta.numel, "out": None if dry_run else out})
    else:
        output.line(f"{delta.changed:,} of {delta.numel:,} coordinates changed")
        output.written(out, dry_run=dry_run)


def _most_changed(delta: LoadedDelta, count: int) -> list[dict[str, Any]]:
    ordered = sorted((t for t in delta.values() if t.changed), key=lambda t: t.changed, reverse=True)
    return [
        {"name": t.name, "changed": t.changed, "numel": t.numel, "share": t.changed / t.numel} for t in ordered[:count]
    ]
