"""The parts of `conflict`: each measures one thing, and says it as a table for people, as JSON and as a tidy table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

from rlforget.cli import models, output
from rlforget.cli.measurement import Measurement

if TYPE_CHECKING:
    from rlforget.delta import Delta
    from rlforget.domains import Domain
    from rlforget.interference import Alignment, Coordinates, Routes

_SHOWN = 5  # modules at either end of a list


@dataclass
class Case:
    """What is looked at.

    Attributes:
        measurement: The rule and the domains.
        loaded: The model, at the after side of the change.
        changes: The change.
        budget: Size of the conflict set, as a share of all coordinates.
        top: Share of channels and heads that count as active.
        evaluate: Whether the subspace's curve is measured too, by rewards.
    """

    measurement: Measurement
    loaded: models.Loaded
    changes: Delta
    budget: float
    top: float
    evaluate: bool

    def __post_init__(self) -> None:
        self._routes: dict[str, Routes] = {}

    @property
    def domains(self) -> list[Domain]:
        """The earlier domains and the later ones, each once."""
        return list({d.name: d for d in (*self.measurement.restore, *self.measurement.protect)}.values())

    @property
    def sampling(self) -> dict[str, Any]:
        """The arguments that everything that samples completions takes."""
        tokenizer = self.loaded.tokenizer
        return {"samples": self.measurement.samples, "seed": self.measurement.seed, "tokenizer": tokenizer}

    def routes(self, domain: Domain) -> Routes:
        """Measure a domain's routes, once."""
        from rlforget.interference import routes

        if domain.name not in self._routes:
            with output.step(f"following {domain.name} through the model, {self.measurement.samples} rollouts"):
                self._routes[domain.name] = routes(self.loaded.model, domain, **self.sampling)
        return self._routes[domain.name]


@dataclass(frozen=True)
class Finding:
    """What a part found.

    Attributes:
        json: For programs.
        rows: A tidy table, one thing a row, the same keys in each.
        show: Writes it for people.
    """

    json: dict[str, Any]
    rows: list[dict[str, Any]]
    show: Callable[[], None]


def conflict_set(case: Case) -> Finding:
    """Find the coordinates of highest score, by layer and kind."""
    chosen = case.measurement.conflict(case.loaded, case.changes).top(case.budget)
    groups = _by_layer(chosen)
    tensors = [{"name": name, "picked": len(indices)} for name, indices in chosen.items()]
    found = {"rule": case.measurement.rule, "count": chosen.count, "groups": groups, "tensors": tensors}
    rows = [
        {"layer": layer, "kind": kind, "picked": count}
        for layer, kinds in groups.items()
        for kind, count in kinds.items()
    ]

    def show() -> None:
        from rlforget.delta.naming import KINDS

        kinds = [kind for kind in KINDS if any(kind in group for group in groups.values())]
        body: list[Any] = [
            (layer, *(f"{group.get(kind, 0):,}" for kind in kinds), f"{sum(group.values()):,}")
            for layer, group in groups.items()
        ]
        totals = [sum(group.get(kind, 0) for group in groups.values()) for kind in kinds]
        output.table(("layer", *kinds, "all"), [*body, ("all", *(f"{n:,}" for n in totals), f"{chosen.count:,}")])
        share = output.percent(chosen.count / case.changes.numel)
        output.line(f"{chosen.count:,} coordinates ({share} of all), of {case.changes.changed:,} that changed")

    return Finding(found, rows, show)


def routes(case: Case) -> Finding:
    """Compare the channels, heads and input directions that every two domains use most."""
    rows: list[dict[str, Any]] = []
    pairs: dict[str, Any] = {}
    for one, other in combinations(case.domains, 2):
        first, second = case.routes(one), case.routes(other)
        overlap = first.top(case.top).overlap(second.top(case.top))
        inputs = {name: (found.overlap(second.inputs[name]), found) for name, found in first.inputs.items()}
        shared = [value for value, _ in inputs.values()]
        chance = [found.basis.shape[1] / found.basis.shape[0] for _, found in inputs.values()]
        directions = {"overlap": sum(shared) / len(shared), "by_chance": sum(chance) / len(chance)}
        layers = {name: value for name, (value, _) in inputs.items()}
        pairs[f"{one.name} {other.name}"] = {**overlap.to_dict(), "inputs": {**directions, "layers": layers}}
        for kind, found in (("channels", overlap.channels), ("heads", overlap.heads)):
            value = {"overlap": found.total.jaccard, "by_chance": found.jaccard_by_chance, "p": found.p}
            rows.append({"first": one.name, "second": other.name, "part": kind, **value})
        rows.append({"first": one.name, "second": other.name, "part": "inputs", **directions, "p": None})

    def show() -> None:
        body = [
            (
                f"{row['first']}, {row['second']}",
                row["part"],
                f"{row['overlap']:.2f}",
                f"{row['by_chance']:.2f}",
                "" if row["p"] is None else f"{row['p']:.1g}",
            )
            for row in rows
        ]
        output.table(("routes", f"most active {output.percent(case.top)}", "overlap", "by chance", "p"), body)

    return Finding({"top": case.top, "pairs": pairs}, rows, show)


def synergy(case: Case) -> Finding:
    """Compare the earlier domain's own update with the later change, on the route that all the domains share."""
    from rlforget.interference import synergy as compare

    own = case.measurement.own_delta(case.loaded, case.changes)
    assert own is not None
    route = None
    for domain in case.domains:
        mine = case.routes(domain).top(case.top)
        route = mine if route is None else route & mine
    found = compare(own, case.changes, route)
    rows = [
        {
            "module": name,
            "cosine": one.cosine,
            "cosine_on_route": found.route[name].cosine if name in found.route else None,
        }
        for name, one in found.everywhere.items()
    ]

    def show() -> None:
        body = [("whole model", f"{found.total.cosine:+.3f}", f"{found.on_route.cosine:+.3f}")]
        for name in _ends(found.route or found.everywhere):
            there = f"{found.route[name].cosine:+.3f}" if name in found.route else ""
            body.append((name, f"{found.everywhere[name].cosine:+.3f}", there))
        output.table(("cosine of the two updates", "everywhere", "shared route"), body)

    return Finding(found.to_dict(), rows, show)


def gradients(case: Case) -> Finding:
    """Compare the gradients of an earlier and of a later domain's loss at the present weights, by module."""
    from rlforget.interference import gradient_alignment

    pairs, rows, shown = {}, [], []
    for one in case.measurement.restore:
        for other in case.measurement.protect:
            if one.name == other.name:
                continue
            with output.step(f"taking the gradients of {one.name} and {other.name}"):
                found = gradient_alignment(case.loaded.model, one, other, **case.sampling)
            pairs[f"{one.name} {other.name}"] = found.to_dict()
            for name, module in found.modules.items():
                halves = (found.first_halves[name].cosine, found.second_halves[name].cosine)
                names = {"first": one.name, "second": other.name, "module": name}
                rows.append({**names, "cosine": module.cosine, "first_halves": halves[0], "second_halves": halves[1]})
            known = found.to_dict()
            halves = known["halves"]
            shown.append(((one.name, other.name), found, (found.total.cosine, *halves)))

    def show() -> None:
        for (first, second), found, whole in shown:
            body = [("whole model", *(f"{value:+.3f}" for value in whole))]
            for name in _ends(found.modules):
                parts = (found.modules, found.first_halves, found.second_halves)
                body.append((name, *(f"{part[name].cosine:+.3f}" for part in parts)))
            output.table(("cosine of gradients", f"{first}, {second}", f"{first}'s halves", f"{second}'s halves"), body)

    return Finding({"pairs": pairs}, rows, show)


def geometry(case: Case) -> Finding:
    """Measure how the change lies to each matrix."""
    from rlforget.delta import geometry as measure
    from rlforget.delta.composed import ComposedWeights
    from rlforget.delta.layers import MemoryLayer
    from rlforget.weights import open_weights

    after = open_weights(case.loaded.model)
    before = ComposedWeights(after, [MemoryLayer(case.changes.invert())])
    device = next(case.loaded.model.parameters()).device
    with output.step("decomposing the matrices before and after"):
        found = measure(before, after, seed=case.measurement.seed, device=device)
    rows = []
    for name, matrix in found.matrices.items():
        flat: dict[str, Any] = {"matrix": name, "out": matrix.shape[0], "in": matrix.shape[1]}
        flat |= {key: value for key, value in vars(matrix).items() if isinstance(value, int | float | None)}
        for key in ("turn", "turn_by_chance"):
            flat |= {f"{key}_shift": getattr(matrix, key).shift, f"{key}_largest": getattr(matrix, key).largest}
        for key in ("changed_principal", "changed_low", "largest_principal", "largest_low"):
            overlap = getattr(matrix, key)
            flat |= {key: overlap.of_first, f"{key}_by_chance": overlap.of_first_by_chance}
        rows.append(flat)
    return Finding(found.to_dict(), rows, lambda: output.line(found.table()))


def subspace(case: Case) -> Finding:
    """Measure in how few directions the damage lies, against as many at random."""
    from rlforget.domains import evaluate
    from rlforget.interference import measure_subspace

    live, tokenizer = case.loaded.model, case.loaded.tokenizer
    earlier, later = case.measurement.restore, case.measurement.protect
    others = [domain for domain in later if domain.name not in {one.name for one in earlier}]
    sampling = case.sampling
    asked = case.measurement.tuning.of_part("subspace")

    def reward() -> float:
        scores = [
            evaluate(live, tokenizer, domain, count=sampling["samples"], seed=sampling["seed"]) for domain in earlier
        ]
        return sum(score.mean for score in scores) / len(scores)

    with output.step(f"measuring the conflict subspace, {sampling['samples']} completions a domain"):
        found = measure_subspace(
            live, case.changes, earlier, others, evaluate=reward if case.evaluate else None, **asked, **sampling
        )
    curves = {"by_share": found.by_share, "by_eigenvalue": found.by_eigenvalue, "random": found.random}
    rows = [{"curve": name, **vars(point)} for name, curve in curves.items() for point in curve]

    def show() -> None:
        points = {name: {point.directions: point for point in curve} for name, curve in curves.items()}
        body = []
        for count in points["by_share"]:
            cells = [points[name].get(count) for name in curves]
            body.append((f"{count:,}", *("" if cell is None else output.percent(cell.explained) for cell in cells)))
        output.table(("directions", "damage undone", "by eigenvalue", "at random"), body)
        needed = found.directions_for()
        rank = f"rank {found.restore.rank}, effective {found.restore.effective_rank:.0f}"
        if needed is not None:
            output.line(f"90% of the damage lies in {needed:,} directions, of gradients of {rank}")
        if found.angles:
            chance = f"{found.overlap_by_chance:.2g} by chance"
            output.line(f"the later domains' gradients share {found.overlap:.2g} of their span ({chance})")

    return Finding(found.to_dict(), rows, show)


def kronecker(case: Case) -> Finding:
    """Say in which layers the damage lies, by the Kronecker form of the curvature."""
    from rlforget.delta.naming import kind_of, layer_of
    from rlforget.interference import kronecker_rule

    earlier, later = case.measurement.restore, case.measurement.protect
    others = [domain for domain in later if domain.name not in {one.name for one in earlier}]
    with output.step("measuring the covariances of every layer"):
        asked = case.measurement.tuning.of_part("kronecker")
        found = kronecker_rule(case.loaded.model, case.changes, earlier, others, **asked, **case.sampling)
    shares = found.damage_shares
    rows = [
        {
            "tensor": name,
            "layer": layer_of(name),
            "kind": kind_of(name),
            "share": shares[name],
            "damage": layer.damage,
            "damage_left": layer.damage_left,
            "side_effect": layer.side_effect,
        }
        for name, layer in found.layers.items()
    ]

    def show() -> None:
        order = sorted(shares, key=lambda name: -shares[name])[: 2 * _SHOWN]
        body = [
            (
                name,
                output.percent(shares[name]),
                f"{found.layers[name].damage:.3g}",
                f"{found.layers[name].damage_left:.3g}",
            )
            for name in order
        ]
        output.table(("damage, Kronecker form", "share", "nats", "left by the rule"), body)

    return Finding(found.to_dict(), rows, show)


PARTS: dict[str, Callable[[Case], Finding]] = {
    "set": conflict_set,
    "routes": routes,
    "synergy": synergy,
    "gradients": gradients,
    "geometry": geometry,
    "subspace": subspace,
    "kronecker": kronecker,
}
"""The parts, in the order in which they are shown."""


def lacking(part: str, measurement: Measurement) -> str | None:
    """Return what a part needs that was not given, or None."""
    earlier, later = measurement.restore, measurement.protect
    if part == "routes" and len({domain.name for domain in (*earlier, *later)}) < 2:
        return "two domains, among --restore and --protect"
    if part == "gradients" and not any(one.name != other.name for one in earlier for other in later):
        return "a domain with --restore and another with --protect"
    if part in ("subspace", "kronecker", "synergy") and not earlier:
        return "a domain with --restore"
    if part == "synergy" and not measurement.has_own:
        return "the earlier domain's own delta with --own"
    return None


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


def _ends(modules: dict[str, Alignment]) -> Iterator[str]:
    """Name the most conflicting modules and the most synergistic ones."""
    from rlforget.interference.alignment import in_order

    order = in_order(modules)
    yield from order[:_SHOWN]
    yield from order[max(_SHOWN, len(order) - _SHOWN) :]
