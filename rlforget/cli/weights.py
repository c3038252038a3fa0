"""`diff`, `apply`, `revert`: see what changed between two checkpoints, and carry it to others."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlforget.cli import output
from rlforget.cli.options import (
    Base,
    Delta,
    DryRun,
    Force,
    InPlace,
    Json,
    OutFolderOrNone,
    Plot,
    Rename,
    out_or_in_place,
    renamed,
)

if TYPE_CHECKING:
    from rlforget.delta import DeltaStats
    from rlforget.delta.file import DeltaFile

Checkpoint = Annotated[Path, typer.Argument(help="A checkpoint folder or .safetensors file.")]
Side = Annotated[str, typer.Argument(help="A checkpoint folder or .safetensors file; or a stage of a history.")]

DIFFERENT = 3


def diff(
    before: Side,
    after: Side,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Save the delta, by custom as NAME.delta.safetensors.")
    ] = None,
    self_contained: Annotated[
        bool, typer.Option("--self-contained", help="Save the bits before too: the file then needs no weights.")
    ] = False,
    rename: Rename = None,
    history: Annotated[
        Path | None,
        typer.Option("--history", "-H", help="The history of the stages; else the one around here.", metavar="DIR"),
    ] = None,
    base: Base = None,
    top: Annotated[int, typer.Option(help="List the N tensors that changed most.", metavar="N", min=0)] = 0,
    exit_code: Annotated[bool, typer.Option("--exit-code", help="Exit with 3 where something changed.")] = False,
    plot: Plot = None,
    force: Force = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Show which coordinates changed between two checkpoints or stages, bit for bit."""
    from rlforget.cli.history import sides_of
    from rlforget.delta.streaming import measure_diff, write_diff
    from rlforget.report.change_picture import save_change_picture
    from rlforget.report.drawing import check_picture
    from rlforget.weights.atomic import check_free
    from rlforget.weights.ranks import from_first
    from rlforget.weights.split import splitting

    if out is not None:
        check_free(out, force=force)
    if plot is not None:
        check_picture(plot, force=force)
    new_names = renamed(rename or [])
    old, new, known = sides_of(before, after, history, base)
    new_names |= {name: now for name, now in known.items() if not {name, now} & {*new_names, *new_names.values()}}
    # Whole paths would push the rate out of the line.
    with output.bar(f"comparing {Path(before).name} with {Path(after).name}") as progress, splitting():
        if out is None or dry_run:
            stats = measure_diff(old, new, rename=new_names, progress=progress)
        else:
            stats = write_diff(
                old, new, out, rename=new_names, self_contained=self_contained, force=force, progress=progress
            )
    if plot is not None and not dry_run:
        from_first(partial(save_change_picture, stats, plot, name=f"{before}, {after}", force=force))
    largest = _most_changed(stats, top)
    if as_json:
        saved, drawn = (None, None) if dry_run else (out, plot)
        output.json_object({**stats.to_dict(), "top": largest, "saved": saved, "plot": drawn})
    else:
        output.line(stats.table())
        if largest:
            output.line()
            rows = [(t["name"], f"{t['changed']:,}", f"{t['numel']:,}", output.percent(t["share"])) for t in largest]
            output.table(("tensor", "changed", "of", "share"), rows)
        for written in (out, plot):
            if written is not None:
                output.written(written, dry_run=dry_run)
    if exit_code and not stats.empty:
        raise typer.Exit(DIFFERENT)


def apply(
    weights: Checkpoint,
    delta: Delta,
    out: OutFolderOrNone = None,
    in_place: InPlace = False,
    force: Force = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Apply a delta to a checkpoint, from before to after: as a new checkpoint, or in place."""
    from rlforget.delta import apply as write

    _carry(write, weights, delta, out, in_place, force=force, dry_run=dry_run, as_json=as_json, backward=False)


def revert(
    weights: Checkpoint,
    delta: Delta,
    out: OutFolderOrNone = None,
    in_place: InPlace = False,
    force: Force = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Take a delta back from a checkpoint, from after to before: as a new checkpoint, or in place."""
    from rlforget.delta import revert as write

    _carry(write, weights, delta, out, in_place, force=force, dry_run=dry_run, as_json=as_json, backward=True)


def _carry(
    write: Callable[..., None],
    weights: Path,
    delta: Path,
    out: Path | None,
    in_place: bool,
    *,
    force: bool,
    dry_run: bool,
    as_json: bool,
    backward: bool,
) -> None:
    from rlforget.delta.file import DeltaFile
    from rlforget.delta.patching import check_fits
    from rlforget.weights.atomic import check_free, check_new_folder
    from rlforget.weights.ranks import from_first
    from rlforget.weights.split import splitting

    out_or_in_place(out, in_place)
    if out is not None:
        (check_new_folder if weights.is_dir() else check_free)(out, force=force)
    file = DeltaFile(delta)
    with output.bar(f"patching {weights}") as progress:
        carry = partial(write, weights, file, out, in_place=in_place, force=force, progress=progress)
        if dry_run:
            from_first(lambda: check_fits(weights, file, backward=backward, in_place=in_place))
        elif in_place:
            from_first(carry)  # one process writes where a crash of any must leave the old state
        else:
            with splitting():
                carry()
    if as_json:
        counts = {"changed": file.changed, "numel": file.numel, "whole": len(file.whole), "files": len(file.files)}
        output.json_object({**counts, "out": None if dry_run else out, "in_place": in_place and not dry_run})
    else:
        output.line(_summary(file))
        output.written(weights if out is None else out, dry_run=dry_run)


def _summary(file: DeltaFile) -> str:
    parts = [f"{file.changed:,} of {file.numel:,} coordinates"]
    parts += [f"{len(file.whole):,} whole tensors"] if file.whole else []
    parts += [f"{len(file.files):,} files"] if file.files else []
    return f"{', '.join(parts)} changed"


def _most_changed(stats: DeltaStats, count: int) -> list[dict[str, Any]]:
    changed = [(name, change) for name, change in stats.tensors.items() if change.changed]
    changed.sort(key=lambda item: item[1].changed, reverse=True)
    return [
        {"name": name, "changed": c.changed, "numel": c.numel, "share": c.changed / c.numel}
        for name, c in changed[:count]
    ]
