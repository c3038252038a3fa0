"""`rollback`: undoing just the changes that hurt an earlier domain, without training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlforget.cli import models, output
from rlforget.cli.measurement import FRACTION, Measurement, Own, Score, Where, load_changes, load_fitting
from rlforget.cli.options import (
    Delta,
    Device,
    DryRun,
    Evaluate,
    Force,
    InPlace,
    Json,
    Model,
    OutFolderOrNone,
    Samples,
    Seed,
    out_or_in_place,
)

if TYPE_CHECKING:
    from rlforget.interference import ConflictSubspace, Coordinates


def rollback(
    model: Model,
    delta: Delta,
    out: OutFolderOrNone = None,
    in_place: InPlace = False,
    restore: Annotated[list[str] | None, typer.Option(help="A domain to restore; may be repeated.")] = None,
    protect: Annotated[list[str] | None, typer.Option(help="A domain to spare; may be repeated.")] = None,
    score: Score = "subspace",
    fraction: Annotated[
        float | None,
        typer.Option(
            help="How many coordinates get old bits, as a share of all.", min=0.0, max=1.0, show_default=str(FRACTION)
        ),
    ] = None,
    dense: Annotated[
        bool, typer.Option("--dense", help="Subtract the whole correction of the conflict subspace instead.")
    ] = False,
    strength: Annotated[float, typer.Option(help="Share of each change to undo.", min=0.0, max=1.0)] = 1.0,
    where: Where = "midpoint",
    own: Own = None,
    samples: Samples = 256,
    seed: Seed = 0,
    evaluate: Evaluate = False,
    device: Device = "auto",
    force: Force = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Undo just the changes that hurt earlier domains, in a new checkpoint folder or in place."""
    from rlforget.recovery import rollback as undo_part
    from rlforget.weights.atomic import check_new_folder

    if dense and (score != "subspace" or fraction is not None):
        raise typer.BadParameter("it takes neither --score nor --fraction", param_hint="--dense")
    names = ("--restore", "--protect")
    measurement = Measurement(
        score, restore or [], protect or [], own, names=names, where=where, samples=samples, seed=seed
    )
    out_or_in_place(out, in_place)
    if out is not None:
        check_new_folder(out, force=force)
    elif model == "miniature":
        raise typer.BadParameter("the shipped miniature is not changed in place", param_hint="--in-place")
    changes = load_changes(delta, model)
    loaded = load_fitting(model, changes, device)
    what: Coordinates | ConflictSubspace
    if dense:
        what = measurement.subspace(loaded, changes)
    else:
        what = measurement.conflict(loaded, changes).top(FRACTION if fraction is None else fraction)
    held = None if out is not None else _fingerprints(loaded)
    shown = measurement.earlier + measurement.later if evaluate else []
    before = models.rewards(loaded, shown, samples=samples, seed=seed)
    report = undo_part(loaded.model, changes, what, strength=strength, seed=seed).report
    after = models.rewards(loaded, shown, samples=samples, seed=seed)
    if not dry_run:
        _save(loaded, out, held, note=f"rollback of {delta}", force=force)
    if as_json:
        rewards = {"before": before, "after": after} if evaluate else None
        places = {"out": None if dry_run else out, "in_place": in_place and not dry_run}
        output.json_object({**report.to_dict(), "rewards": rewards, **places})
        return
    if evaluate:
        models.show_rewards(before, after)
    moved = output.percent(report.norm_share)
    output.line(f"{report.written:,} of {changes.numel:,} coordinates written, {moved} of the change's norm")
    output.written(loaded.folder if out is None else out, dry_run=dry_run)


def _fingerprints(loaded: models.Loaded) -> dict[str, tuple[int, int]]:
    """Return what the model is before anything is done to it."""
    from rlforget.weights import open_weights
    from rlforget.weights.digest import lanes_of

    live = open_weights(loaded.model)
    return {name: lanes_of(live, name) for name in live.names()}


def _save(
    loaded: models.Loaded, out: Path | None, held: dict[str, tuple[int, int]] | None, *, note: str, force: bool
) -> None:
    """Write the model as a new checkpoint, or into the one that it came from and that must still be as `held` says."""
    if out is not None:
        models.save(loaded.model, loaded.tokenizer, out, like=loaded.folder, force=force)
        return
    from rlforget.delta.in_place import write_difference
    from rlforget.weights import open_weights
    from rlforget.weights.checkpoint import CheckpointWeights

    with output.bar(f"writing {loaded.folder}") as progress:
        checkpoint = CheckpointWeights(loaded.folder)
        write_difference(checkpoint, open_weights(loaded.model), held=held, note=note, progress=progress)
