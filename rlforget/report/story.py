"""The findings, as sentences with their numbers. Each says what the numbers say, also where an effect is not there."""

from __future__ import annotations

import math
from collections.abc import Iterable

from rlforget.report.families import Family
from rlforget.report.over_seeds import ComparisonOverSeeds, DeltaOverSeeds, OverSeeds, RepairOverSeeds, SharedOverSeeds
from rlforget.report.results import Place
from rlforget.report.spread import Spread
from rlforget.report.wording import NONE, listing, moved, number, percent, plural, signed

_UNCHOSEN = (Family.SUBSPACE, Family.SCORE)  # rollbacks that are neither controls nor training


def story(found: OverSeeds) -> list[str]:
    """Tell the run in at most five sentences; what it lacks is left out."""
    told = (_trained(found), _lost(found), _rolled_back(found), _few_coordinates(found), _sft_and_rl(found))
    return [sentence for sentence in told if sentence]


def rewards_finding(found: OverSeeds) -> str:
    """Say what happened to the earlier domains."""
    if not found.lost or not found.later:
        return f"The rewards of {plural(len(found.domains), 'domain')} over {plural(len(found.stages) - 1, 'stage')}"
    return f"While {listing(found.later)} were trained, {_changes(found)}"


def repairs_finding(found: OverSeeds) -> str:
    """Say what the best rollback gives back and keeps, beside the best control."""
    best = found.best(*_UNCHOSEN)
    if best is None:
        return f"{plural(len(found.repairs), 'repair')}, none of them a rollback by a conflict score"
    said = f"Rolling back by {best.label} gives back {percent(best.regained.mean)} and keeps {percent(best.kept.mean)}"
    controls = [repair.regained.mean for repair in found.repairs if repair.family is Family.CONTROL]
    return f"{said}; no control gives back more than {percent(max(controls))}" if controls else said


def overlap_finding(found: OverSeeds) -> str:
    """Say how far the stages overlap beyond chance, in their changed coordinates and in their most edited neurons."""
    coordinates = _beyond_chance([pair.coordinates for pair in found.overlaps])
    neurons = _beyond_chance([pair.neurons for pair in found.overlaps])
    return (
        f"The overlap of the stages' changed coordinates is {coordinates} chance, that of their top neurons {neurons}"
    )


def _beyond_chance(shares: list[SharedOverSeeds]) -> str:
    ratios = [s.jaccard.mean / s.chance.mean for s in shares if s.chance.mean and math.isfinite(s.jaccard.mean)]
    ends = list(dict.fromkeys(number(ratio, 1) for ratio in (min(ratios), max(ratios)))) if ratios else []
    return f"{' to '.join(ends) or NONE} times"


def delta_finding(name: str, delta: DeltaOverSeeds) -> str:
    """Say how far a stage moved the weights, and where most."""
    said = (
        f"The {name} stage changed {percent(1 - delta.sparsity['sparsity'].mean, 1)} of the coordinates, by a norm of "
    )
    said += number(delta.norm.mean)
    squares = {
        place: change.norm.mean * change.norm.mean for place, change in delta.places.items() if change.norm.known
    }
    whole = sum(squares.values())
    if not whole or not math.isfinite(whole):
        return said
    top = max(squares, key=lambda place: squares[place])
    return f"{said}; {place_name(top)} holds {percent(squares[top] / whole)} of its square"


def place_name(place: Place) -> str:
    """Write a place in the model."""
    layer, kind = place
    return f"the {kind} outside the layers" if layer is None else f"the {kind} of layer {layer}"


def forgotten_finding(compared: ComparisonOverSeeds) -> str:
    """Say what SFT and RL did to the other domains."""
    sft, grpo = compared.sft.forgotten.mean, compared.grpo.forgotten.mean
    return f"The other domains' mean reward changed by {signed(-sft)} under SFT and by {signed(-grpo)} under RL"


def target_finding(compared: ComparisonOverSeeds) -> str:
    """Say what SFT and RL reached on the domain that they were trained on."""
    sft, grpo = (_mean(tuned.rewards, compared.target) for tuned in (compared.sft, compared.grpo))
    return f"On {compared.target}, SFT reached {number(sft)} and RL {number(grpo)}"


def kl_finding(compared: ComparisonOverSeeds) -> str:
    """Say how far SFT and RL moved the outputs on the other domains from the start's."""
    sft, grpo = compared.sft.kl.mean, compared.grpo.kl.mean
    further, (more, less) = ("SFT", (sft, grpo)) if sft > grpo else ("RL", (grpo, sft))
    figures = f"KL {number(more)} against {number(less)}, the mean over the other domains"
    return f"{further} went further from the start: {figures}"


def sparsity_finding(compared: ComparisonOverSeeds) -> str:
    """Say how many weights SFT and RL left as they were."""
    dtype = list(compared.grpo.sparsity)[-1]
    sft, grpo = (_mean(tuned.sparsity, dtype) for tuned in (compared.sft, compared.grpo))
    return f"As {dtype}, RL left {percent(grpo, 1)} of the weights unchanged, SFT {percent(sft, 1)}"


def _trained(found: OverSeeds) -> str | None:
    gains = [
        (name, found.stages[i].rewards[name].mean - found.stages[i - 1].rewards[name].mean)
        for i, name in found.own
        if name in found.stages[i].rewards and name in found.stages[i - 1].rewards
    ]
    if not gains:
        return None
    raised = all(gain > 0 for _, gain in gains)
    said = listing([f"{name} by {number(gain) if raised else signed(gain)}" for name, gain in gains])
    path = " → ".join(stage.name for stage in found.stages)
    return (
        f"One model was trained on one domain after another, {path}; each stage "
        f"{'raised' if raised else 'changed'} its own domain's reward: {said}."
    )


def _lost(found: OverSeeds) -> str | None:
    return f"{rewards_finding(found)}." if found.lost and found.later else None


def _changes(found: OverSeeds) -> str:
    then, now = found.stages[found.split].rewards, found.stages[-1].rewards
    return listing([f"{name} {moved(_mean(then, name), _mean(now, name))}" for name in found.lost])


def _rolled_back(found: OverSeeds) -> str | None:
    best = found.best(*_UNCHOSEN, sparse=False)
    if best is None:
        return None
    later = listing(found.later) or "the later domains"
    control = next((repair for repair in found.repairs if repair.rule == "random subspace"), None)
    said = (
        f"Without any training, {best.label} gave back {percent(best.regained.mean)} of what was lost and kept "
        f"{percent(best.kept.mean)} of what {later} had gained, by a correction of {percent(best.norm_share.mean)} of "
        "the later change's norm"
    )
    return f"{said}; a random subspace gave back {percent(control.regained.mean)}." if control else f"{said}."


def _few_coordinates(found: OverSeeds) -> str | None:
    best = found.best(*_UNCHOSEN, sparse=True)
    if best is None or best.fraction is None:
        return None
    tried = sum(repair.family in _UNCHOSEN and repair.fraction is not None for repair in found.repairs)
    said = [
        f"Old bits at the top {percent(best.fraction)} of the coordinates by {best.rule}, the best of {tried} such "
        f"choices, gave back {percent(best.regained.mean)} and kept {percent(best.kept.mean)}"
    ]
    if control := _random_of(found, best):
        said.append(f"as many random coordinates gave back {percent(control.regained.mean)}")
    if refresh := found.best(Family.TRAINING):
        said.append(
            f"training again ({refresh.label}) {percent(refresh.regained.mean)}, keeping {percent(refresh.kept.mean)}"
        )
    return "; ".join(said) + "."


def _random_of(found: OverSeeds, best: RepairOverSeeds) -> RepairOverSeeds | None:
    """The random choice of as many coordinates."""
    return next((r for r in found.repairs if r.rule == "random" and r.fraction == best.fraction), None)


def _sft_and_rl(found: OverSeeds) -> str | None:
    compared = found.comparison
    if compared is None:
        return None
    return f"{target_finding(compared)}; on the way {forgotten_finding(compared)}."


def _mean(spreads: dict[str, Spread], name: str) -> float:
    return spreads[name].mean if name in spreads else math.nan


def seeds_note(seeds: Iterable[int]) -> str:
    """Say what the numbers are means over."""
    count = len(list(seeds))
    if count == 1:
        return "One seed: how much another would differ cannot be told from this page."
    return (
        f"Every number is the mean over {count} seeds; small marks are single seeds, ranges go from lowest to highest."
    )
