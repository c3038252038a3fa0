"""The findings, as sentences with their numbers. Each says what the numbers say, also where an effect is not there."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from rlforget.report.families import Family
from rlforget.report.over_seeds import ComparisonOverSeeds, DeltaOverSeeds, OverSeeds, RepairOverSeeds, SharedOverSeeds
from rlforget.report.results import Place
from rlforget.report.spread import Spread
from rlforget.report.wording import NONE, fraction, listing, moved, number, percent, plural, signed, tenths

_Key = TypeVar("_Key")
_UNCHOSEN = (Family.SUBSPACE, Family.SCORE)  # rollbacks that are neither controls nor training


def story(found: OverSeeds) -> list[str]:
    """Tell the run in at most five sentences: what was trained, what was lost, where it lies, what undid it, at what
    cost. What the run lacks is left out.
    """
    told = (_trained(found), _lost(found), _where(found), _undone(found), _cost(found))
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
    top = _largest(_squares([delta]))
    return f"{said}; {place_name(top[0])} holds {percent(top[1])} of its square" if top else said


def sparsity_of_stages(found: OverSeeds) -> str:
    """Say which share of the coordinates the stages left, by their bits and within the relative tolerance."""
    deltas = [stage.delta for stage in found.stages if stage.delta]
    same, near = (
        _range([delta.sparsity[key].mean for delta in deltas], tenths) for key in ("sparsity", "sparsity_relative")
    )
    stored = listing(list(dict.fromkeys(dtype for delta in deltas for dtype in delta.dtypes)))
    return f"A stage leaves {same} of the coordinates ({stored}) equal to the bit, {near} equal within 0.1%"


def steps_finding(found: OverSeeds) -> str:
    """Say how far a changed coordinate moves, in representable values."""
    deltas = [(stage.name, stage.delta) for stage in found.stages if stage.delta and stage.delta.steps]
    units = [delta.steps[1].mean if len(delta.steps) > 1 else 0.0 for _, delta in deltas]
    middles = [2.0 ** max(0, middle - 1) for _, delta in deltas if (middle := _middle_bin(delta)) is not None]
    said = f"Of the changed coordinates {_range(units, tenths)} moved to a neighbouring value"
    if not middles:
        return said
    return f"{said}, and half by at least {_range(middles, lambda steps: f'{steps:,.0f}')} values"


def _middle_bin(delta: DeltaOverSeeds) -> int | None:
    """The bin that the median of the changed coordinates lies in."""
    total = 0.0
    for place, share in enumerate(delta.steps):
        total += share.mean
        if total >= 0.5:
            return place
    return None


def _range(values: list[float], write: Callable[[float], str]) -> str:
    known = [value for value in values if math.isfinite(value)]
    ends = list(dict.fromkeys(write(end) for end in (min(known), max(known)))) if known else []
    return " to ".join(ends) or NONE


def _squares(deltas: Iterable[DeltaOverSeeds]) -> dict[Place, float]:
    """The squared norm of some changes by place, added up."""
    squares: dict[Place, float] = {}
    for delta in deltas:
        for place, change in delta.places.items():
            if change.norm.known:
                squares[place] = squares.get(place, 0.0) + change.norm.mean * change.norm.mean
    return squares


def _largest(squares: Mapping[_Key, float]) -> tuple[_Key, float] | None:
    """The largest of some squares, and its share of them all."""
    whole = sum(squares.values())
    if not whole or not math.isfinite(whole):
        return None
    top = max(squares, key=lambda key: squares[key])
    return top, squares[top] / whole


def place_name(place: Place) -> str:
    """Write a place in the model."""
    layer, module = place
    return f"{module} outside the layers" if layer is None else f"{module} of layer {layer}"


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


def _where(found: OverSeeds) -> str | None:
    """Where the later stages' changes lie."""
    deltas = [stage.delta for stage in found.stages[found.split + 1 :] if stage.delta]
    kinds: dict[str, float] = {}
    for delta in deltas:
        for name, squares in delta.kinds.items():
            if squares.known:
                kinds[name] = kinds.get(name, 0.0) + squares.mean
    kind, place = _largest(kinds), _largest(_squares(deltas))
    if not found.later or kind is None or place is None:
        return None
    said = (
        f"Of the squared norm of what {listing(found.later)} changed, {percent(kind[1])} lies in the {kind[0]} "
        f"weights, and most in {place_name(place[0])} ({percent(place[1])})"
    )
    earlier = {stage.name for stage in found.stages[: found.split + 1]}
    across = [pair for pair in found.overlaps if (pair.first in earlier) != (pair.second in earlier)]
    if not across:
        return f"{said}."
    times = _beyond_chance([pair.neurons for pair in across])
    return f"{said}; the overlap of its top neurons with those of the earlier stages is {times} chance."


def _undone(found: OverSeeds) -> str | None:
    """What gave back how much, beside the controls."""
    dense, few = (found.best(*_UNCHOSEN, sparse=sparse) for sparse in (False, True))
    said = []
    if dense:
        control = next((repair for repair in found.repairs if repair.rule == "random subspace"), None)
        beside = f" (a random subspace {percent(control.regained.mean)})" if control else ""
        said.append(f"{dense.label} gave back {percent(dense.regained.mean)} of what was lost{beside}")
    if few:
        tried = sum(repair.family in _UNCHOSEN and repair.fraction is not None for repair in found.repairs)
        control = _random_of(found, few)
        beside = f" (as many random ones {percent(control.regained.mean)})" if control else ""
        said.append(
            f"old bits at the top {fraction(few.fraction)} of the coordinates by {few.rule}, the best of {tried} such "
            f"choices, {'' if dense else 'gave back '}{percent(few.regained.mean)}{beside}"
        )
    return f"Without any training, {listing(said)}." if said else None


def _cost(found: OverSeeds) -> str | None:
    """What the same repairs left of the later gains, and what training again comes to."""
    dense, few = (found.best(*_UNCHOSEN, sparse=sparse) for sparse in (False, True))
    said = []
    if dense:
        moved_by = percent(dense.norm_share.mean)
        said.append(f"{dense.label} kept {percent(dense.kept.mean)}, moving {moved_by} of the later change's norm")
    if few:
        said.append(f"{few.label} kept {percent(few.kept.mean)}")
    if not said:
        return None
    later = listing(found.later) or "the later domains"
    text = f"Of what {later} had gained, {listing(said)}"
    if again := found.best(Family.TRAINING):
        text += (
            f"; training again ({again.label}) gave back {percent(again.regained.mean)} and kept "
            f"{percent(again.kept.mean)}"
        )
    return f"{text}."


def _random_of(found: OverSeeds, best: RepairOverSeeds) -> RepairOverSeeds | None:
    """The random choice of as many coordinates."""
    return next((r for r in found.repairs if r.rule == "random" and r.fraction == best.fraction), None)


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


def sampled(found: OverSeeds) -> str:
    """Say what rewards are over: prompts and seeds."""
    return _told(f"n = {found.prompts} evaluation prompts a domain" if found.prompts else "", found)


def completions(found: OverSeeds) -> str:
    """Say what is measured on a model's own samples is over: completions and seeds."""
    return _told(f"n = {found.samples} completions a domain" if found.samples else "", found)


def counted(found: OverSeeds) -> str:
    """Say what counts of coordinates are over: all of them, and seeds."""
    return _told("n: every coordinate", found)


def _told(samples: str, found: OverSeeds) -> str:
    named = listing([str(seed) for seed in found.seeds])
    seeds = f"mean of the seeds {named}" if len(found.seeds) > 1 else f"seed {named}"
    return f"{samples}, {seeds}." if samples else f"{seeds.capitalize()}."
