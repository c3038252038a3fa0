"""`conflict`, `rollback`: which changes hurt an earlier domain, and undoing just those, without training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlforget.cli import models, output
from rlforget.cli.measurement import Measurement, Point
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
    from rlforget.delta import Delta as LoadedDelta
    from rlforget.interference import ConflictSubspace, Coordinates

Score = Annotated[
    str,
    typer.Option(
        help="How to score a change: subspace, fisher, two_fisher, taylor, opposed, or the controls magnitude, random."
    ),
]
Where = Annotated[
    Point,
    typer.Option(help="Point on the way from before to after where an earlier domain's Fisher is taken."),
]
Own = Annotated[
    Path | None, typer.Option(help="The earlier domain's own delta, for the score `opposed`.", metavar="DELTA")
]

FRACTION = 0.02
NOTHING_TO_DO = 3


def conflict(
    model: Model,
    delta: Delta,
    earlier: Annotated[list[str] | None, typer.Option(help="A domain that lost; may be repeated.")] = None,
    later: Annotated[list[str] | None, typer.Option(help="A domain to spare; may be repeated.")] = None,
    score: Score = "subspace",
    fraction: Annotated[
        float, typer.Option(help="Size of the conflict set, as a share of all coordinates.", min=0.0, max=1.0)
    ] = FRACTION,
    where: Where = "midpoint",
    own: Own = None,
    samples: Samples = 256,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Show where the changes lie that hurt an earlier domain: the conflict set, by layer and kind."""
    names = ("--earlier", "--later")
    measurement = Measurement(
        score, earlier or [], later or [], own, names=names, where=where, samples=samples, seed=seed
    )
    changes = _load_delta(delta, model)
    loaded = _load_fitting(model, changes, device)
    chosen = measurement.conflict(loaded, changes).top(fraction)
    summary = {"score": score, "count": chosen.count, "changed": changes.changed, "numel": changes.numel}
    if as_json:
        tensors = [{"name": name, "picked": len(indices)} for name, indices in chosen.items()]
        output.json_object({**summary, "groups": _by_layer(chosen), "tensors": tensors})
    else:
        _show_set(chosen)
        share = output.percent(chosen.count / changes.numel)
        output.line(f"{chosen.count:,} coordinates ({share} of all), of {changes.changed:,} that changed")


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
    changes = _load_delta(delta, model)
    loaded = _load_fitting(model, changes, device)
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


def _load_delta(path: Path, model: str) -> LoadedDelta:
    """Load a delta whose after side is `model`, or end the command where it holds no change."""
    from rlforget.delta import Delta as File

    delta = File.load(path, base=models.folder_of(model))
    if not delta.changed:
        output.note(f"nothing to do: {path} changes no coordinate")
        raise typer.Exit(NOTHING_TO_DO)
    return delta


def _load_fitting(model: str, delta: LoadedDelta, device: str) -> models.Loaded:
    """Hold that the delta leads to the model's weights, and load it."""
    from rlforget.interference.point import check_at_after
    from rlforget.weights import open_weights

    check_at_after(open_weights(models.folder_of(model)), delta)
    return models.load(model, device)


def _by_layer(chosen: Coordinates) -> dict[str, dict[str, int]]:
    """Count coordinates by layer, in order, and therein by kind of tensor."""
    from rlforget.delta.naming import kind_of, layer_of

    order = sorted(chosen, key=lambda name: (layer_of(name) is None, layer_of(name) or 0))
    counts: dict[str, dict[str, int]] = {}
    for name in order:
        layer = layer_of(name)
        group = counts.setdefault("outside" if layer is None else str(layer), {})
        group[kind_of(name)] = group.get(kind_of(name), 0) + len(chosen[name])
    return counts


def _show_set(chosen: Coordinates) -> None:
    from rlforget.delta.naming import KINDS

    groups = _by_layer(chosen)
    kinds = [kind for kind in KINDS if any(kind in group for group in groups.values())]
    rows: list[Any] = [
        (layer, *(f"{group.get(kind, 0):,}" for kind in kinds), f"{sum(group.values()):,}")
        for layer, group in groups.items()
    ]
    totals = [sum(group.get(kind, 0) for group in groups.values()) for kind in kinds]
    output.table(("layer", *kinds, "all"), [*rows, ("all", *(f"{n:,}" for n in totals), f"{chosen.count:,}")])
