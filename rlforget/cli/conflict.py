"""`conflict`: which changes hurt an earlier domain, and where in the network they lie."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlforget.cli import output
from rlforget.cli.measurement import FRACTION, Measurement, Own, Score, Where, load_changes, load_fitting
from rlforget.cli.options import Delta, Device, Json, Model, Samples, Seed

if TYPE_CHECKING:
    from rlforget.interference import Coordinates


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
    changes = load_changes(delta, model)
    loaded = load_fitting(model, changes, device)
    chosen = measurement.conflict(loaded, changes).top(fraction)
    summary = {"score": score, "count": chosen.count, "changed": changes.changed, "numel": changes.numel}
    if as_json:
        tensors = [{"name": name, "picked": len(indices)} for name, indices in chosen.items()]
        output.json_object({**summary, "groups": _by_layer(chosen), "tensors": tensors})
    else:
        _show_set(chosen)
        share = output.percent(chosen.count / changes.numel)
        output.line(f"{chosen.count:,} coordinates ({share} of all), of {changes.changed:,} that changed")


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
