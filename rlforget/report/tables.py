"""The tables behind the plots."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from rlforget.report import circuits_story
from rlforget.report.circuits_file import Circuits
from rlforget.report.measured_files import DomainDamage, Subspace
from rlforget.report.over_seeds import ComparisonOverSeeds, OverSeeds
from rlforget.report.plots.steps import MEASURES, bin_name
from rlforget.report.spread import Spread
from rlforget.report.story import place_name
from rlforget.report.wording import NONE, fraction, number, percent, tenths


class Cell(NamedTuple):
    """A number in a table.

    Attributes:
        text: As it is shown.
        values: In full, for sorting and for programs: the mean, and over several seeds the lowest and the highest; none
            where it is not known.
    """

    text: str
    values: tuple[float, ...] = ()


@dataclass(frozen=True)
class Table:
    """A table: what it shows, its head, and its rows; the first cell of a row names it."""

    caption: str
    head: list[str]
    rows: list[list[str | Cell]]


def rewards_table(found: OverSeeds) -> Table:
    """Every domain's reward after every stage."""
    rows: list[list[str | Cell]] = [[stage.name, *_cells(stage.rewards, found.domains)] for stage in found.stages]
    return Table("Mean sampled reward after every stage", ["after", *found.domains], rows)


def sparsity_table(found: OverSeeds) -> Table:
    """How much of the weights each stage left, and how far it moved them."""
    head = ["stage", *(f"left: {name}" for name in MEASURES.values()), "norm of the change", "stored as"]
    rows: list[list[str | Cell]] = [
        [
            stage.name,
            *(_cell(stage.delta.sparsity[key], tenths) for key in MEASURES),
            _cell(stage.delta.norm, _three),
            ", ".join(stage.delta.dtypes),
        ]
        for stage in found.stages
        if stage.delta
    ]
    return Table("The share of coordinates that each stage left, by three measures, and its norm", head, rows)


def steps_table(found: OverSeeds) -> Table | None:
    """How far the changed coordinates moved; None where the run does not tell."""
    stages = [(stage.name, stage.delta.steps) for stage in found.stages if stage.delta and stage.delta.steps]
    if not stages:
        return None
    none = Spread(())
    rows: list[list[str | Cell]] = [
        [
            Cell(bin_name(place), (2.0 ** (place - 1) if place else 0.0,)),
            *(_cell(steps[place] if place < len(steps) else none, _hundredths) for _, steps in stages),
        ]
        for place in range(max(len(steps) for _, steps in stages))
    ]
    caption = "Share of the changed coordinates by the number of representable values they moved"
    return Table(caption, ["steps", *(name for name, _ in stages)], rows)


def repairs_table(found: OverSeeds) -> Table:
    """Every repair."""
    error = "± over prompts"
    head = ["repair", "sort", "coordinates", "regained", error, "kept", error, "norm moved", *found.domains]
    rows: list[list[str | Cell]] = [
        [
            repair.rule,
            repair.family.value,
            Cell(fraction(repair.fraction), (1.0 if repair.fraction is None else repair.fraction,)),
            _cell(repair.regained, percent),
            _cell(repair.regained_stderr, percent),
            _cell(repair.kept, percent),
            _cell(repair.kept_stderr, percent),
            _cell(repair.norm_share, percent),
            *_cells(repair.rewards, found.domains),
        ]
        for repair in found.repairs
    ]
    return Table("Share of the loss regained, share of the later gain kept, and every domain's reward", head, rows)


def places_table(found: OverSeeds) -> Table:
    """The change of every stage by layer and module."""
    head = ["where", "stage", "coordinates", "changed", "share changed", "norm", "root mean square"]
    rows: list[list[str | Cell]] = [
        [
            place_name(place),
            stage.name,
            _count(sum(tensor.numel for tensor in at.tensors)),
            _cell(_added([tensor.changed for tensor in at.tensors]), _whole),
            _cell(at.share, tenths),
            _cell(at.norm, _three),
            _cell(at.per_coordinate, _tiny),
        ]
        for stage in found.stages
        if stage.delta
        for place, at in stage.delta.places.items()
    ]
    return Table("The change of every stage, by layer and module", head, rows)


def overlaps_table(found: OverSeeds) -> Table:
    """The overlap of every two stages."""
    head = ["stages", "coordinates", "by chance", "top-10% neurons", "by chance"]
    rows: list[list[str | Cell]] = [
        [
            f"{pair.first}, {pair.second}",
            *(
                _cell(spread, _three)
                for both in (pair.coordinates, pair.neurons)
                for spread in (both.jaccard, both.chance)
            ),
        ]
        for pair in found.overlaps
    ]
    return Table("Jaccard index of what two stages changed, beside that of independent sets of these sizes", head, rows)


def comparison_table(compared: ComparisonOverSeeds) -> Table:
    """SFT and RL, a column each."""
    domains = list(compared.start)
    tuned = (compared.grpo, compared.sft)

    def row(
        name: str, start: str | Cell, spreads: Iterable[Spread | None], write: Callable[[float], str]
    ) -> list[str | Cell]:
        return [name, start, *(NONE if spread is None else _cell(spread, write) for spread in spreads)]

    rows = [row("steps", "", (one.steps for one in tuned), _whole)]
    rows += [
        row(f"reward on {name}", _cell(compared.start[name]), (one.rewards.get(name) for one in tuned), number)
        for name in domains
    ]
    rows.append(row("forgotten on the other domains", "", (one.forgotten for one in tuned), number))
    rows += [
        row(f"unchanged as {dtype}", "", (one.sparsity.get(dtype) for one in tuned), tenths)
        for dtype in compared.grpo.sparsity
    ]
    rows += [
        row(f"KL to the start on {name}", "", (one.kl_to_start.get(name) for one in tuned), _three)
        for name in compared.grpo.kl_to_start
    ]
    return Table(f"The start, and its fine-tunes on {compared.target}", ["", "start", "RL (GRPO)", "SFT"], rows)


def damage_table(found: list[DomainDamage]) -> Table:
    """Every domain's damage along the way."""
    head = ["domain", "t", "predicted", "measured", "standard error", "KL"]
    rows: list[list[str | Cell]] = [
        [
            one.domain,
            _value(point.t),
            _value(one.at(point.t) if one.bends else math.nan, _three),
            _value(point.rise.value, _three),
            _value(point.rise.stderr, _three),
            _value(point.kl, _three),
        ]
        for one in found
        for point in one.points
    ]
    return Table("Rise of the loss from before (0) to now (1), in nats a completion", head, rows)


def subspace_table(found: Subspace) -> Table:
    """Every point of the curves."""
    rows: list[list[str | Cell]] = [
        [
            name,
            _count(point.directions),
            _value(point.explained, tenths),
            _value(point.side_effect, _three),
            _value(point.norm_share, tenths),
        ]
        for name, points in found.curves.items()
        for point in points
    ]
    head = ["directions", "how many", "damage undone", "side effect, nats", "norm moved"]
    return Table("Share of the damage undone by undoing some directions", head, rows)


def circuits_table(found: Circuits) -> Table:
    """Every fine-tune's circuit beside its controls, and every checkpoint of its way."""
    kept = ["kept of the base's", "over prompts", "by chance", "on halves", "base on halves"]
    head = ["model", "heads", *kept, "p of chance", "p of other prompts", "correlation", "reward"]
    sizes = {one.name: _count(len(one.heads)) for one in found.maps}
    rows: list[list[str | Cell]] = [[found.base.name, sizes[found.base.name], *[""] * (len(head) - 2)]]
    for one in found.kept:
        rows.append(
            [
                one.name,
                sizes.get(one.name, NONE),
                _value(one.retention, percent),
                circuits_story.interval_text(one),
                circuits_story.chance_text(one),
                _value(one.at_halves, percent),
                _value(one.ceiling, percent),
                _value(one.p_chance, circuits_story.p_text),
                _value(one.p_prompts, circuits_story.p_text),
                _value(one.correlation),
                "",
            ]
        )
    blank = [""] * (len(head) - 4)
    rows += [
        [f"{way.name}, {step.name}", "", _value(step.retention, percent), *blank, _value(step.reward)]
        for way in found.ways
        for step in way.steps
    ]
    return Table(f"Circuits for {found.task}: what is kept, beside chance and the ceiling", head, rows)


def vulnerable_table(found: Circuits) -> Table:
    """The heads that only one of two fine-tunes lost, over δ."""
    rows: list[list[str | Cell]] = [
        [
            f"{one.first}, not {one.second}",
            Cell(f"{at.delta:g}", (at.delta,)),
            _count(len(at.heads)),
            _count(at.reverse),
            _count(at.in_base),
            _value(at.p, circuits_story.p_text),
            ", ".join(f"{layer}:{head}" for layer, head in at.heads) or NONE,
        ]
        for one in found.differences
        for at in one.vulnerable
    ]
    head = ["lost by", "δ", "heads", "the other way round", "in the base's circuit", "p", "which, as layer:head"]
    return Table("Heads that one fine-tune lost and the other kept", head, rows)


def head_weights_tables(found: Circuits) -> list[Table]:
    """What changed in the weights of those heads, beside all others."""
    tables = []
    for name, heads in found.weights.items():
        parts = list(dict.fromkeys(part for one in heads for part in one.parts))
        rows: list[list[str | Cell]] = [
            [
                one.head,
                *(_value(one.parts.get(part, math.nan), tenths) for part in parts),
                _value(one.share, tenths),
                _value(one.norm, _three),
            ]
            for one in heads
        ]
        head = ["head", *(f"changed in {part}" for part in parts), "changed", "norm of the change"]
        tables.append(Table(f"Changed weights: {name}", head, rows))
    return tables


def _cell(spread: Spread, write: Callable[[float], str] = number) -> Cell:
    known = spread.known
    ends = (min(known), max(known)) if len(known) > 1 else ()
    return Cell(spread.text(write, between="\n"), (spread.mean, *ends) if known else ())


def _cells(spreads: dict[str, Spread], names: list[str]) -> list[str | Cell]:
    return [_cell(spreads[name]) if name in spreads else NONE for name in names]


def _value(value: float, write: Callable[[float], str] = number) -> Cell:
    return Cell(write(value), (value,) if math.isfinite(value) else ())


def _count(value: int) -> Cell:
    return Cell(f"{value:,}", (float(value),))


def _added(spreads: list[Spread]) -> Spread:
    """The sum of some numbers, seed by seed."""
    return Spread(tuple(sum(values) for values in zip(*(spread.values for spread in spreads), strict=True)))


def _whole(value: float) -> str:
    return f"{value:,.0f}" if math.isfinite(value) else NONE


def _hundredths(share: float) -> str:
    return percent(share, 2)


def _three(value: float) -> str:
    return number(value, 3)


def _tiny(value: float) -> str:
    return f"{value:.2e}"
