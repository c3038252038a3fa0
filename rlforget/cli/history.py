"""`init`, `commit`, `log`, `show`, `checkout`, `blame`, `tag`, `gc`: a model's stages, kept as git keeps files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlforget.cli import history_output, models, output
from rlforget.cli.options import Base, DryRun, Force, Json, OutFolder, Plot, Rename, misused, renamed

if TYPE_CHECKING:
    from rlforget.history import History, Stage
    from rlforget.weights import Weights

In = Annotated[
    Path | None,
    typer.Option(
        "--history", "-H", help="The history's folder; else the current one, or the first above it.", metavar="DIR"
    ),
]
Wait = Annotated[float, typer.Option(help="Seconds to wait for another process that writes.", min=0.0)]
Which = Annotated[
    str, typer.Argument(help="A stage: its name, a tag, digits of its id, HEAD, HEAD~2, or base.", metavar="STAGE")
]

NOTHING_TO_DO = 3
_WAIT = 60.0


def init(
    base: Annotated[str, typer.Argument(help="The checkpoint to begin with, or `miniature`.", metavar="BASE")],
    history: Annotated[
        Path, typer.Option("--history", "-H", help="The folder to make a history.", metavar="DIR")
    ] = Path(),
    copy: Annotated[bool, typer.Option("--copy", help="Copy the base into the history.")] = False,
    wait: Wait = _WAIT,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Begin a history; or, on one that is there, say where its base is now."""
    from rlforget.history.beginning import begin

    with output.step(f"reading {base}"):
        record = begin(history, models.folder_of(base), copy=copy, wait=wait, dry_run=dry_run)
    if as_json:
        output.json_object({"history": history, "base": history_output.base_json(record), "dry_run": dry_run})
        return
    output.line(f"base {record.path}, weights {record.fingerprint}")
    output.written(history / "history.json", dry_run=dry_run)


def commit(
    checkpoint: Annotated[
        Path | None,
        typer.Argument(help="A checkpoint, or a *.delta.safetensors file on the parent.", metavar="CKPT"),
    ] = None,
    message: Annotated[str, typer.Option("--message", "-m", help="What was done; a run says that itself.")] = "",
    domain: Annotated[str | None, typer.Option(help="The skill that was trained.")] = None,
    name: Annotated[str | None, typer.Option(help="The stage's name; else the domain's, made unique.")] = None,
    parent: Annotated[
        str | None,
        typer.Option(
            help="The stage it came from; for a run, that whose weights it began with.",
            metavar="STAGE",
            show_default="HEAD",
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="The training configuration: a JSON or YAML file.", metavar="FILE")
    ] = None,
    metric: Annotated[
        list[str] | None, typer.Option(help="NAME=NUMBER; may be repeated.", metavar="NAME=NUMBER")
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="Commit every stage of a sequence's run instead.", metavar="FOLDER")
    ] = None,
    rename: Rename = None,
    allow_empty: Annotated[bool, typer.Option("--allow-empty", help="Also where nothing changed.")] = False,
    history: In = None,
    base: Base = None,
    wait: Wait = _WAIT,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Add a stage to a history: what changed between its parent and a checkpoint."""
    from rlforget.cli.run_commits import commit_run
    from rlforget.errors import NothingToCommitError
    from rlforget.history.committing import Details, preview
    from rlforget.history.committing import commit as add

    if (checkpoint is None) == (run is None):
        raise misused(
            "CKPT",
            found="none" if run is None else "--run beside it",
            fix="Give a checkpoint, or the --run of a sequence.",
        )
    if run is None and not message.strip():
        raise misused("--message", found="none", fix="Say with -m what was done.")
    kept = opened(history, base)
    if run is not None:
        with output.step(f"committing the stages of {run}"):
            stages, names = commit_run(kept, run, parent=parent, wait=wait, dry_run=dry_run)
        if not names:
            raise _nothing_to_commit(run)
        history_output.show_committed(kept, stages, names, as_json=as_json)
        return
    origin, new_names = parent or "HEAD", renamed(rename or [])
    said = (name, domain, message, origin, _config(config), _metrics(metric or []), new_names, allow_empty)
    try:
        with output.bar(f"comparing {checkpoint} with {origin}") as progress:
            if dry_run:
                planned = preview(kept.store, str(checkpoint), Details(*said), progress=progress)
            else:
                stages = [add(kept.store, str(checkpoint), Details(*said), wait=wait, progress=progress)]
    except NothingToCommitError:
        raise _nothing_to_commit(checkpoint) from None
    if dry_run:
        history_output.show_planned(*planned, as_json=as_json)
    else:
        history_output.show_committed(kept, stages, [], as_json=as_json)


def log(
    stage: Annotated[
        str | None, typer.Argument(help="Only this stage and those it came from.", metavar="STAGE")
    ] = None,
    graph: Annotated[bool, typer.Option("--graph", help="Draw the branches.")] = False,
    count: Annotated[
        int | None, typer.Option("--max-count", "-n", help="The newest N alone.", metavar="N", min=0)
    ] = None,
    history: In = None,
    as_json: Json = False,
) -> None:
    """List the stages of a history, the newest first."""
    if graph and count is not None:
        raise misused("--graph", found="--max-count beside it", fix="Leave one out: a graph has all stages.")
    kept = opened(history)
    if as_json:
        output.json_object(history_output.log_json(kept, stage, count))
    elif graph:
        history_output.show_graph(kept, stage)
    else:
        history_output.show_log(kept, stage, count)


def show(
    stage: Which = "HEAD",
    plot: Plot = None,
    history: In = None,
    base: Base = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Show one stage: what it came from, how much it changed, its metrics and configuration."""
    from rlforget.history.references import resolve

    kept = opened(history, base)
    index = kept.index
    found = resolve(index, stage)
    if plot is not None:
        if found is None:
            raise misused("--plot", found="the base, which is no change", fix="Name a stage.")
        _draw_stage(kept, found, plot, force=force)
    if as_json:
        told = history_output.stage_json(index, found)
        output.json_object(told if plot is None else {**told, "plot": plot})
        return
    history_output.show_stage(index, found)
    if plot is not None:
        output.written(plot, dry_run=False)


def checkout(
    stage: Which,
    out: OutFolder,
    history: In = None,
    base: Base = None,
    force: Force = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Write a stage as a checkpoint, bit for bit as it was committed."""
    from rlforget.history.references import label

    kept = opened(history, base)
    found = kept.stage(stage)
    with output.bar(f"checking out {label(found)}") as progress:
        kept.checkout(found, out, force=force, dry_run=dry_run, progress=progress)
    if as_json:
        output.json_object({"stage": label(found), "id": found and found.id, "out": None if dry_run else out})
    else:
        output.written(out, dry_run=dry_run)


def blame(
    tensor: Annotated[str | None, typer.Argument(help="One tensor; else all, summarised.", metavar="TENSOR")] = None,
    stage: Annotated[str, typer.Option(help="Up to this stage.", metavar="STAGE")] = "HEAD",
    top: Annotated[
        int, typer.Option(help="List the N coordinates changed most often; tensors, where none is given.", min=0)
    ] = 0,
    at: Annotated[
        str | None, typer.Option(help="One coordinate's value at each stage, e.g. 3,5.", metavar="I,J,...")
    ] = None,
    history: In = None,
    base: Base = None,
    as_json: Json = False,
) -> None:
    """Show which stage last changed each coordinate, and how often it went back and forth."""
    if at is not None and tensor is None:
        raise misused("--at", found="no TENSOR", fix="Name the one that the coordinate is in.")
    kept = opened(history, base)
    if at is not None and tensor is not None:
        moments = kept.biography(tensor, _coordinate(at), stage)
        history_output.show_biography(tensor, at, moments, as_json=as_json)
    elif tensor is not None:
        with output.step(f"reading {tensor} at each stage"):
            found = kept.blame(tensor, stage)
        history_output.show_blame(found, top, as_json=as_json)
    else:
        with output.bar("reading every tensor at each stage") as progress:
            summary = kept.blame_summary(stage, progress=progress)
        history_output.show_summary(summary, top, as_json=as_json)


def tag(
    name: Annotated[str | None, typer.Argument(help="The tag; without it, list all.", metavar="NAME")] = None,
    stage: Which = "HEAD",
    delete: Annotated[bool, typer.Option("--delete", "-d", help="Take the tag away.")] = False,
    history: In = None,
    wait: Wait = _WAIT,
    force: Annotated[bool, typer.Option("--force", help="Move a tag that is there.")] = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Give a stage a further name, take one away, or list them."""
    from rlforget.history.names import tag as add_tag
    from rlforget.history.names import untag

    kept = opened(history)
    if name is None and delete:
        raise misused("--delete", found="no NAME", fix="Name the tag.")
    if name is not None and delete:
        untag(kept.folder, name, wait=wait, dry_run=dry_run)
    elif name is not None:
        add_tag(kept.folder, name, stage, force=force, wait=wait, dry_run=dry_run)
    tags = kept.tags
    if as_json:
        output.json_object({"tags": tags, "dry_run": dry_run})
    elif name is None:
        names = {one.id: one.name for one in kept.stages}
        for one, target in sorted(tags.items()):
            output.line(f"{one:<20} {target[:8]} {names[target]}")
    else:
        verb = "would " if dry_run else ""
        output.line(f"{verb}take the tag {name} away" if delete else f"{verb}tag {stage} as {name}")


def gc(
    drop: Annotated[
        list[str] | None,
        typer.Option(help="Also remove this stage and all that came from it; may be repeated.", metavar="STAGE"),
    ] = None,
    history: In = None,
    wait: Wait = _WAIT,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Remove what no stage needs: deltas that a killed commit left, and stages that are dropped by name."""
    kept = opened(history)
    removed = kept.gc(drop=drop or [], dry_run=dry_run, wait=wait)
    if as_json:
        output.json_object({**removed.to_dict(), "dry_run": dry_run})
    else:
        verb = "would remove" if dry_run else "removed"
        for one in removed.stages:
            output.line(f"{verb} stage {one.name} {one.short}")
        for file, size in removed.files.items():
            output.line(f"{verb} {file}, {history_output.size(size)}")
    if not (removed.stages or removed.files):
        output.note("nothing to do")
        raise typer.Exit(NOTHING_TO_DO)


def opened(folder: Path | None, base: Path | None = None) -> History:
    """Open the history in `folder`; else that of the current folder or the first one above it, as git does.

    Raises:
        HistoryError: There is none.
    """
    from rlforget.history import History

    return History.open(folder or nearest() or Path(), base=base)


def sides_of(
    before: str, after: str, folder: Path | None, base: Path | None
) -> tuple[Path | Weights, Path | Weights, dict[str, str]]:
    """Return what the operands of a comparison stand for: stages, inside a history; else the paths of checkpoints.

    As with git, what names a stage is one; a path is told from it by a slash, as in `./math`.

    Args:
        before: As it was typed.
        after: Likewise.
        folder: The history's folder; None: that around the current folder, if there is one.
        base: The history's base, where it is elsewhere than the history says.

    Returns:
        Both sides, and {name before: name after} of the tensors that were renamed from one stage to the other.

    Raises:
        HistoryError: One is no stage of the history, and no path either.
    """
    from rlforget.delta.composed import ComposedWeights
    from rlforget.delta.renames import renames
    from rlforget.errors import HistoryError

    home = folder or nearest()
    if (home is None and base is None) or (_is_path(before) and _is_path(after)):
        for operand in (before, after):
            if not _is_path(operand) and not Path(operand).exists():
                raise HistoryError(
                    operand,
                    expected="a checkpoint, or a stage of a history",
                    found="no such path, and no history in this folder or above it",
                    fix="Check the path, or name the history with -H.",
                )
        return Path(before), Path(after), {}
    history = opened(home, base)
    old, new = _side(history, before), _side(history, after)
    if isinstance(old, ComposedWeights) and isinstance(new, ComposedWeights):
        return old, new, renames(old, new)
    return old, new, {}


def _draw_stage(history: History, stage: Stage, path: Path, *, force: bool) -> None:
    """Draw what a stage changed; its record has the totals alone, so its delta is read."""
    from rlforget.delta.renames import renames
    from rlforget.delta.streaming import measure_diff
    from rlforget.report.change_picture import save_change_picture
    from rlforget.report.drawing import check_picture

    check_picture(path, force=force)
    old, new = history.weights(stage.parent and history.index.by_id[stage.parent]), history.weights(stage)
    with output.bar(f"reading {stage.name}") as progress:
        stats = measure_diff(old, new, rename=renames(old, new), progress=progress)
    save_change_picture(stats, path, name=stage.name, force=force)


def nearest() -> Path | None:
    """Return the current folder, if it is a history, or the first one above it that is."""
    from rlforget.history.index import is_history

    here = Path().resolve()
    return next((folder for folder in (here, *here.parents) if is_history(folder)), None)


def _is_path(operand: str) -> bool:
    return "/" in operand or operand in (".", "..")


def _side(history: History, operand: str) -> Path | Weights:
    from rlforget.errors import HistoryError

    if _is_path(operand):
        return Path(operand)
    try:
        stage = history.stage(operand)
    except HistoryError:
        if Path(operand).exists():
            return Path(operand)
        raise
    return history.weights(stage)


def _nothing_to_commit(given: Path | None) -> typer.Exit:
    output.note(f"nothing to commit: {given} holds what the history has, bit for bit")
    return typer.Exit(NOTHING_TO_DO)


def _metrics(given: list[str]) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for text in given:
        name, _, number = text.partition("=")
        try:
            metrics[name] = float(number)
        except ValueError:
            raise misused("--metric", found=repr(text), fix="Write it as NAME=NUMBER.") from None
    return metrics


def _config(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    from rlforget.errors import ConfigError

    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            import json

            found = json.loads(text)
        else:
            import yaml

            try:
                found = yaml.safe_load(text)
            except yaml.YAMLError as fault:
                raise ValueError(str(fault)) from fault
    except OSError as fault:
        fix = "Check the path."
        raise ConfigError(
            str(path), expected="a JSON or YAML file", found=fault.strerror or str(fault), fix=fix
        ) from fault
    except ValueError as fault:
        fix = "Mend the file, or leave --config out."
        raise ConfigError(str(path), expected="JSON or YAML", found=str(fault), fix=fix) from fault
    if not isinstance(found, dict):
        fix = "Put the values under names."
        raise ConfigError(str(path), expected="an object", found=type(found).__name__, fix=fix)
    return found


def _coordinate(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")] if text.strip() else []
    except ValueError:
        raise misused("--at", found=repr(text), fix="Write whole numbers, as in 3,5.") from None
