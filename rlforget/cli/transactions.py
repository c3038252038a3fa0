"""`undo`, `verify`: take an in-place write back, and see whether a checkpoint or a history is sound."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlforget.cli import output
from rlforget.cli.history import In, nearest
from rlforget.cli.options import Base, DryRun, Json, misused

if TYPE_CHECKING:
    from rlforget.weights.undo_records import UndoRecord

NOT_SOUND = 1
NOTHING_TO_DO = 3


def undo(
    weights: Annotated[Path, typer.Argument(help="A checkpoint that was written with --in-place.", metavar="DIR")],
    show: Annotated[bool, typer.Option("--list", help="List what can be undone, the last first.")] = False,
    forget: Annotated[
        bool, typer.Option("--forget", help="Undo nothing: drop the records that undoing needs, for their room.")
    ] = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Take the last in-place write of a checkpoint back, bit for bit; again, the one before it."""
    from rlforget.weights.checkpoint import CheckpointWeights
    from rlforget.weights.in_place import undo as take_back
    from rlforget.weights.undo_records import undo_log

    if show and forget:
        raise misused("--forget", found="--list beside it", fix="Give one of them.")
    CheckpointWeights(weights)  # puts right what was cut short, and holds that there is a checkpoint
    if forget:
        _forget(weights, dry_run=dry_run, as_json=as_json)
        return
    log = undo_log(weights)
    if show:
        _show_log(weights, log, as_json=as_json)
        return
    if not log:
        output.note(f"nothing to do: no in-place write of {weights} is left to undo")
        raise typer.Exit(NOTHING_TO_DO)
    with output.step(f"undoing {_named(log[0])}"):
        record = take_back(weights, dry_run=dry_run)
    left = len(log) - (0 if dry_run else 1)
    if as_json:
        output.json_object({**record.to_dict(), "left": left, "dry_run": dry_run})
        return
    done = "would be" if dry_run else "are"
    output.line(f"{record.changed:,} coordinates {done} what they were before {_named(record)}")
    if left and not dry_run:
        output.line(f"{left} more can be undone")


def verify(
    path: Annotated[
        Path | None,
        typer.Argument(
            help="A checkpoint, or the folder of a history; else the history around here, or the checkpoint here.",
            metavar="DIR",
        ),
    ] = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Take back what a crash cut short, and clear away what it left.")
    ] = False,
    history: In = None,
    base: Base = None,
    as_json: Json = False,
) -> None:
    """Check that a checkpoint is whole, or that all of a history is; exits with 1 where it is not."""
    from rlforget.errors import NotACheckpointError
    from rlforget.history.index import is_history
    from rlforget.weights.ranks import from_first
    from rlforget.weights.soundness import verify as check

    if path is not None and history is not None:
        raise misused("DIR", found="--history beside it", fix="Give one of them.")
    path = path or history or nearest() or Path()
    if history is not None or base is not None or is_history(path):
        _verify_history(path, base, repair=repair, as_json=as_json)
        return
    if not path.exists():
        expected = "a checkpoint, or the folder of a history"
        raise NotACheckpointError(str(path), expected=expected, found="nothing there", fix="Check the path.")
    with output.step(f"reading {path}"):
        report = from_first(lambda: check(path, repair=repair))  # headers and records, which is little to read
    if as_json:
        output.json_object(report.to_dict())
    else:
        for problem in report.problems:
            found = problem.found.removeprefix(f"{problem.path}: ")  # the text of an error may begin with its place
            output.line(f"{problem.kind}: {problem.path}: {found}{' (repaired)' if problem.repaired else ''}")
        more = f", {report.undoable} in-place writes can be undone" if report.undoable else ""
        state = "sound" if report.sound else "not sound"
        files = "1 file" if report.files == 1 else f"{report.files:,} files"
        output.line(f"{path}: {report.tensors:,} tensors in {files}{more}: {state}")
        if any(not problem.repaired and problem.kind != "unreadable" for problem in report.problems) and not repair:
            output.note(f"`rlforget verify {path} --repair` puts this right")
    if not report.sound:
        raise typer.Exit(NOT_SOUND)


def _forget(weights: Path, *, dry_run: bool, as_json: bool) -> None:
    from rlforget.weights.undo_records import forget

    size = forget(weights, dry_run=dry_run)
    if as_json:
        output.json_object({"weights": weights, "bytes": size, "dry_run": dry_run})
    elif size:
        output.line(f"undo records of {size:,} bytes {'would be' if dry_run else 'are'} dropped")
    else:
        output.note(f"nothing to do: {weights} has no undo records")
    if not size:
        raise typer.Exit(NOTHING_TO_DO)


def _show_log(weights: Path, log: list[UndoRecord], *, as_json: bool) -> None:
    if as_json:
        output.json_object({"weights": weights, "records": [record.to_dict() for record in log]})
        return
    rows = [(str(one.number), one.created, f"{one.changed:,}", one.note or "-") for one in log]
    output.table(("write", "when", "coordinates", "what"), rows)


def _named(record: UndoRecord) -> str:
    return f"the write of {record.created}" + (f" ({record.note})" if record.note else "")


def _verify_history(folder: Path, base: Path | None, *, repair: bool, as_json: bool) -> None:
    from rlforget.history import History
    from rlforget.weights.split import splitting

    with output.bar(f"reading {folder}", of="states") as progress, splitting():
        report = History.open(folder, base=base).verify(progress=progress)
    if as_json:
        output.json_object(report.to_dict())
    else:
        for name, fault in report.faults.items():
            output.line(f"{name}: {fault}")
        output.line(f"{folder}: {len(report.checked)} states: {'sound' if report.sound else 'not sound'}")
        if repair and not report.sound:
            output.note("a history is not repaired: copy the files at fault from another copy of it")
    if not report.sound:
        raise typer.Exit(NOT_SOUND)
