"""The sections of the page: what each shows, why, and the tables behind it. A part the run lacks has no section."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from rlforget.report import plots, tables
from rlforget.report.circuits_file import CIRCUITS_FILE, COMMAND, Circuits
from rlforget.report.figure import Plot
from rlforget.report.measured_files import (
    CONFLICT_COMMAND,
    CONFLICT_FILE,
    DAMAGE_COMMAND,
    DAMAGE_FILE,
    DomainDamage,
    Subspace,
)
from rlforget.report.over_seeds import OverSeeds
from rlforget.report.tables import Table
from rlforget.report.wording import listing


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        key: Its id.
        heading: What it is about.
        text: How to read it.
        plots: Its plots; none where the run lacks this part.
        tables: The numbers behind them.
        choices: What a reader may switch the plots between.
        remedy: Where there are no plots, what would bring them, if that is not the run itself.
    """

    key: str
    heading: str
    text: str
    plots: list[Plot] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    choices: tuple[str, ...] = ()
    remedy: str = ""


def sections(
    found: OverSeeds | None,
    circuits: Circuits | None = None,
    damage: list[DomainDamage] | None = None,
    subspace: Subspace | None = None,
) -> Iterator[Section]:
    """Build the sections in their order; those without plots say what the run lacks. Circuits may stand alone."""
    if found is not None:
        yield _rewards(found)
        yield _repairs(found)
        yield _places(found)
        yield _steps(found)
        yield _overlaps(found)
        yield _damage(damage)
        yield _subspace(subspace)
        yield _comparison(found)
    yield _circuits(circuits)
    if circuits is not None:
        yield _vulnerable(circuits)


def _rewards(found: OverSeeds) -> Section:
    text = "Each point is a domain's reward on sampled answers to evaluation prompts; the large mark is its own stage."
    if not found.domains:
        return Section("rewards", "Rewards along the sequence", text)
    return Section(
        "rewards", "Rewards along the sequence", text, [plots.rewards_plot(found)], [tables.rewards_table(found)]
    )


def _repairs(found: OverSeeds) -> Section:
    earlier, later = listing(list(found.lost)) or "the earlier domains", listing(found.later) or "the later ones"
    text = (
        f"Up: the share of the reward lost on {earlier} that came back. Right: the share of the gain on {later} that "
        "stayed. The upper right corner is a whole repair; controls put back as many coordinates or directions, chosen "
        "at random or by size alone. The percentage in a name is the share of the coordinates that got their old bits "
        "back; lines join the fractions of one rule. The best rule is picked by these same numbers, which flatters it."
    )
    if not found.repairs:
        return Section("repairs", "What undoing gives back, and what it costs", text)
    return Section(
        "repairs",
        "What undoing gives back, and what it costs",
        text,
        [plots.repairs_plot(found)],
        [tables.repairs_table(found)],
    )


def _places(found: OverSeeds) -> Section:
    heading, drawn = "Where the weights changed", plots.place_plots(found)
    text = (
        "Each stage against the one before it, by layer and module. A coordinate is changed where its stored "
        "bits differ, so the share depends on the storage dtype; the colours mean the same in all maps."
    )
    return Section("places", heading, text, drawn, [tables.places_table(found)] if drawn else [], plots.PLACE_CHOICES)


def _steps(found: OverSeeds) -> Section:
    heading, drawn = "How sparse the updates are", plots.step_plots(found)
    text = (
        "What counts as a sparse update depends on the storage dtype and on the tolerance. Equal bits are the truth "
        "here; the published tolerances stand beside them."
    )
    behind = [tables.sparsity_table(found), tables.steps_table(found)] if drawn else []
    return Section("steps", heading, text, drawn, [table for table in behind if table])


def _overlaps(found: OverSeeds) -> Section:
    heading = "Do the stages touch the same weights?"
    text = (
        "The Jaccard index of what two stages changed, |A and B| / |A or B|, beside that of two independent sets of "
        "the same sizes. A neuron is an MLP channel; compared are the tenth of them that each stage edited most."
    )
    if not found.overlaps:
        return Section("overlaps", heading, text)
    return Section(
        "overlaps", heading, text, [plots.overlap_plot(found)], [tables.overlaps_table(found)], plots.OVERLAP_CHOICES
    )


def _damage(found: list[DomainDamage] | None) -> Section:
    heading = "Damage, predicted and measured"
    if not found:
        remedy = f"No damage in this run; `{DAMAGE_COMMAND} > {DAMAGE_FILE}`, written into its folder, adds it."
        return Section("damage", heading, "", remedy=remedy)
    text = (
        "How much the later change raised an earlier domain's loss on completions of the model before it: predicted "
        "from its gradient and curvature there, and measured by moving the weights along the way."
    )
    return Section("damage", heading, text, plots.damage_plots(found), [tables.damage_table(found)])


def _subspace(found: Subspace | None) -> Section:
    heading = "In how few directions the damage lies"
    if found is None:
        command = f"{CONFLICT_COMMAND} > {CONFLICT_FILE}"
        remedy = f"No conflict subspace in this run; `{command}`, written into its folder, adds it."
        return Section("subspace", heading, "", remedy=remedy)
    text = (
        "The damage is the change of log π of the earlier domain's completions, in the linear model. Undoing the "
        "directions of weight space that carry most of it undoes most of it; as many random directions undo nothing."
    )
    return Section("subspace", heading, text, [plots.subspace_plot(found)], [tables.subspace_table(found)])


def _comparison(found: OverSeeds) -> Section:
    heading, compared = "SFT against RL", found.comparison
    if compared is None:
        return Section("comparison", heading, "")
    text = (
        f"The weights before the last stage were trained on {compared.target} by RL, and again by SFT, until both had "
        "the same sampled reward. The question is what each cost the domains that were not trained."
    )
    drawn = plots.comparison_plots(found, compared)
    return Section("comparison", heading, text, drawn, [tables.comparison_table(compared)])


def _circuits(found: Circuits | None) -> Section:
    heading = "Circuits: the heads that a task needs"
    if found is None:
        remedy = f"No circuits in this run; `{COMMAND} -o {CIRCUITS_FILE}`, written into its folder, adds them."
        return Section("circuits", heading, "", remedy=remedy)
    text = (
        f"How much {found.metric} on {found.task} falls when a head's output is replaced, by {found.method}: blue "
        "heads are needed, brown ones work against the task. A dot marks the heads of the circuit; in a difference, "
        "the base's heads that were lost. Retention is the share of the base's circuit that is kept; chance is what a "
        "random circuit of that size would keep. The ceiling is what the base keeps of its own from one half of the "
        "prompts to the other; beside it stands the fine-tune's on the other half, the dashed line."
    )
    return Section(
        "circuits", heading, text, plots.circuit_plots(found), [tables.circuits_table(found)], plots.CIRCUIT_CHOICES
    )


def _vulnerable(found: Circuits) -> Section:
    heading = "Vulnerable heads: what one fine-tune lost and the other kept"
    drawn = plots.vulnerable_plots(found)
    if not drawn:
        remedy = (
            "No vulnerable heads: they are told of two fine-tunes; `rlforget circuits compare BASE NAME=MODEL "
            f"OTHER=MODEL --domain NAME --weights -o {CIRCUITS_FILE}` adds them."
        )
        return Section("vulnerable", heading, "", remedy=remedy)
    text = (
        "A head is vulnerable where its mask fell by more than δ further in the one fine-tune than in the other. Which "
        "of the two is first was chosen before; the count the other way round is what to read it beside."
    )
    return Section(
        "vulnerable", heading, text, drawn, [tables.vulnerable_table(found), *tables.head_weights_tables(found)]
    )
