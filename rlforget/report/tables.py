"""The tables behind the plots, as plain text cells."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from rlforget.report import circuits_story
from rlforget.report.circuits_file import Circuits
from rlforget.report.over_seeds import ComparisonOverSeeds, OverSeeds
from rlforget.report.spread import Spread
from rlforget.report.story import place_name
from rlforget.report.wording import NONE, fraction, number, percent


@dataclass(frozen=True)
class Table:
    """A table: what it shows, its head, and its rows; the first cell of a row names it."""

    caption: str
    head: list[str]
    rows: list[list[str]]


def rewards_table(found: OverSeeds) -> Table:
    """Every domain's reward after every stage, and how much of the weights the stage left."""
    head = ["after", *found.domains, "same bits", "within 1e-5", "within 0.1%", "norm", "stored as"]
    rows = []
    for stage in found.stages:
        delta = stage.delta
        left = [_cell(delta.sparsity[key], _tenths) for key in delta.sparsity] if delta else [""] * 3
        moved = [_cell(delta.norm), ", ".join(delta.dtypes)] if delta else [""] * 2
        rows.append([stage.name, *_cells(stage.rewards, found.domains), *left, *moved])
    caption = "Mean sampled reward after every stage; the share of coordinates that the stage left, by three measures"
    return Table(caption, head, rows)


def repairs_table(found: OverSeeds) -> Table:
    """Every repair."""
    head = ["repair", "sort", "coordinates", "regained", "kept", "norm moved", *found.domains]
    rows = [
        [
            repair.rule,
            repair.family.value,
            fraction(repair.fraction),
            _cell(repair.regained, percent),
            _cell(repair.kept, percent),
            _cell(repair.norm_share, percent),
            *_cells(repair.rewards, found.domains),
        ]
        for repair in found.repairs
    ]
    return Table("Share of the loss regained, share of the later gain kept, and every domain's reward", head, rows)


def places_table(found: OverSeeds) -> Table:
    """The change of every stage by layer and kind."""
    head = ["where", "stage", "coordinates changed", "norm", "root mean square"]
    rows = [
        [
            place_name(place),
            stage.name,
            _cell(at.share, _tenths),
            _cell(at.norm, _three),
            _cell(at.per_coordinate, _tiny),
        ]
        for stage in found.stages
        if stage.delta
        for place, at in stage.delta.places.items()
    ]
    return Table("The change of every stage, by layer and kind of tensor", head, rows)


def overlaps_table(found: OverSeeds) -> Table:
    """The overlap of every two stages."""
    head = ["stages", "coordinates", "by chance", "top-10% neurons", "by chance"]
    rows = [
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

    def row(name: str, start: str, spreads: Iterable[Spread | None], write: Callable[[float], str]) -> list[str]:
        return [name, start, *(NONE if spread is None else _cell(spread, write) for spread in spreads)]

    rows = [row("steps", "", (one.steps for one in tuned), lambda steps: number(steps, 0))]
    rows += [
        row(f"reward on {name}", _cell(compared.start[name]), (one.rewards.get(name) for one in tuned), number)
        for name in domains
    ]
    rows.append(row("forgotten on the other domains", "", (one.forgotten for one in tuned), number))
    rows += [
        row(f"unchanged as {dtype}", "", (one.sparsity.get(dtype) for one in tuned), _tenths)
        for dtype in compared.grpo.sparsity
    ]
    rows += [
        row(f"KL to the start on {name}", "", (one.kl_to_start.get(name) for one in tuned), _three)
        for name in compared.grpo.kl_to_start
    ]
    return Table(f"The start, and its fine-tunes on {compared.target}", ["", "start", "RL (GRPO)", "SFT"], rows)


def circuits_table(found: Circuits) -> Table:
    """Every fine-tune's circuit beside its controls, and every checkpoint of its way."""
    kept = ["kept of the base's", "over prompts", "by chance", "on halves", "base on halves"]
    head = ["model", "heads", *kept, "p of chance", "p of other prompts", "correlation", "reward"]
    sizes = {one.name: str(len(one.heads)) for one in found.maps}
    rows = [[found.base.name, sizes[found.base.name], *[""] * (len(head) - 2)]]
    for one in found.kept:
        cells = [percent(one.retention), circuits_story.interval_text(one), circuits_story.chance_text(one)]
        cells += [percent(one.at_halves), percent(one.ceiling)]
        cells += [circuits_story.p_text(p) for p in (one.p_chance, one.p_prompts)]
        rows.append([one.name, sizes.get(one.name, NONE), *cells, number(one.correlation), ""])
    blank = [""] * (len(head) - 4)
    rows += [
        [f"{way.name}, {step.name}", "", percent(step.retention), *blank, number(step.reward)]
        for way in found.ways
        for step in way.steps
    ]
    return Table(f"Circuits for {found.task}: what is kept, beside chance and the ceiling", head, rows)


def _cell(spread: Spread, write: Callable[[float], str] = number) -> str:
    return spread.text(write, between="\n")


def _cells(spreads: dict[str, Spread], names: list[str]) -> list[str]:
    return [_cell(spreads[name]) if name in spreads else NONE for name in names]


def _tenths(share: float) -> str:
    return percent(share, 1)


def _three(value: float) -> str:
    return number(value, 3)


def _tiny(value: float) -> str:
    return f"{value:.2e}"
