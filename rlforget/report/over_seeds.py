"""A run's results over its seeds: every number as its mean, with each seed's own value."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlforget.report.families import Family, family_of
from rlforget.report.results import (
    Change,
    Comparison,
    Pair,
    Place,
    Repair,
    Results,
    Run,
    Shared,
    Stage,
    StageDelta,
    Tuned,
)
from rlforget.report.spread import Spread
from rlforget.report.wording import fraction as written_fraction

SPARSITIES = ("sparsity", "sparsity_absolute", "sparsity_relative")


Rewards = dict[str, Spread]


@dataclass(frozen=True)
class RepairOverSeeds:
    """One repair: `regained` of the earlier domains' loss, `kept` of the later ones' gain, share of norm moved.

    `regained_stderr` and `kept_stderr` are standard errors over prompts, of each seed.
    """

    rule: str
    fraction: float | None
    regained: Spread
    kept: Spread
    norm_share: Spread
    rewards: Rewards
    regained_stderr: Spread
    kept_stderr: Spread

    @property
    def family(self) -> Family:
        """What sort of repair it is."""
        return family_of(self.rule)

    @property
    def label(self) -> str:
        """The rule, and the fraction of the coordinates that it put back."""
        return self.rule if self.fraction is None else f"{self.rule} {written_fraction(self.fraction)}"

    @property
    def worth(self) -> float:
        """The lower of what it regains and keeps, by which repairs are ranked; −inf where one is not known."""
        both = (self.regained.mean, self.kept.mean)
        return min(both) if all(map(math.isfinite, both)) else -math.inf


@dataclass(frozen=True)
class TensorOverSeeds:
    """The change of one tensor: how many of its `numel` coordinates changed."""

    name: str
    numel: int
    changed: Spread


@dataclass(frozen=True)
class PlaceOverSeeds:
    """The change in one place: share of coordinates changed, norm, root mean square over coordinates; its tensors."""

    share: Spread
    norm: Spread
    per_coordinate: Spread
    tensors: list[TensorOverSeeds]


@dataclass(frozen=True)
class DeltaOverSeeds:
    """What a stage did to the weights.

    Attributes:
        dtypes: The storage dtypes.
        numel: All coordinates.
        sparsity: The share of equal coordinates, by the keys of `SPARSITIES`.
        norm: Euclidean norm of the change.
        steps: Share of the changed coordinates in each bin of `StageDelta.steps`.
        places: The change by layer and module.
        kinds: Sum of (after − before)² by kind of tensor.
    """

    dtypes: tuple[str, ...]
    numel: int
    sparsity: dict[str, Spread]
    norm: Spread
    steps: list[Spread]
    places: dict[Place, PlaceOverSeeds]
    kinds: dict[str, Spread]


@dataclass(frozen=True)
class StageOverSeeds:
    """A stage: every domain's reward after it, its error over prompts; its delta (the base has none) and domain."""

    name: str
    rewards: Rewards
    stderr: Rewards
    delta: DeltaOverSeeds | None
    domain: str


@dataclass(frozen=True)
class SharedOverSeeds:
    """The Jaccard index of two sets, and what chance alone would give."""

    jaccard: Spread
    chance: Spread


@dataclass(frozen=True)
class PairOverSeeds:
    """The overlap of two stages, by the sets compared: `coordinates` and `neurons`."""

    first: str
    second: str
    coordinates: SharedOverSeeds
    neurons: SharedOverSeeds


@dataclass(frozen=True)
class TunedOverSeeds:
    """A fine-tune on the target domain."""

    steps: Spread
    rewards: Rewards
    forgotten: Spread
    sparsity: dict[str, Spread]
    kl_to_start: Rewards

    @property
    def kl(self) -> Spread:
        """KL(start ‖ fine-tune), the mean over the other domains."""
        columns = zip(*(spread.values for spread in self.kl_to_start.values()), strict=True)
        return Spread(tuple(Spread(column).mean for column in columns))


@dataclass(frozen=True)
class ComparisonOverSeeds:
    """SFT and RL on one domain, from one start."""

    target: str
    start: Rewards
    grpo: TunedOverSeeds
    sft: TunedOverSeeds


@dataclass(frozen=True)
class OverSeeds:
    """A run's results over its seeds. Parts that the run lacks are empty, or None.

    Attributes:
        seeds: The seeds, in the order of every `Spread.values`.
        prompts: Evaluation prompts a domain, as the run's settings say; empty where they do not.
        samples: Completions a domain for all that is measured on a model's own samples, likewise.
        stages: From the base to the end.
        domains: The domains with rewards, those of the sequence first.
        lost: The earlier domains, and the reward that each lost to the later stages.
        overlaps: By pair of stages.
        repairs: In the run's order.
        comparison: SFT against RL.
    """

    seeds: tuple[int, ...]
    prompts: str
    samples: str
    stages: list[StageOverSeeds]
    domains: list[str]
    lost: Rewards
    overlaps: list[PairOverSeeds]
    repairs: list[RepairOverSeeds]
    comparison: ComparisonOverSeeds | None

    @property
    def own(self) -> list[tuple[int, str]]:
        """The stages that trained a domain with rewards: position and domain."""
        return [(i, stage.domain) for i, stage in enumerate(self.stages) if i and stage.domain in self.domains]

    @property
    def split(self) -> int:
        """The position of the last earlier domain's stage; what came after it did the damage."""
        return max((position for position, name in self.own if name in self.lost), default=0)

    @property
    def later(self) -> list[str]:
        """The domains trained after `split`; none where there is no earlier domain."""
        return [name for position, name in self.own if 0 < self.split < position]

    def best(self, *families: Family, sparse: bool | None = None) -> RepairOverSeeds | None:
        """The repair of some families with the highest `worth`; `sparse` asks for few coordinates, or for all."""
        fitting = [
            repair
            for repair in self.repairs
            if repair.family in families and (sparse is None or (repair.fraction is not None) == sparse)
        ]
        return max(fitting, key=lambda repair: repair.worth, default=None)


def over_seeds(results: Results) -> OverSeeds:
    """Average a run's results over its seeds."""
    runs = results.runs
    stages = [_stage([run.stages[i] for run in runs]) for i in range(len(runs[0].stages))]
    measured = list(dict.fromkeys(name for stage in stages for name in stage.rewards))
    trained = [stage.domain for stage in stages if stage.domain in measured]
    compared = [run.comparison for run in runs]
    return OverSeeds(
        seeds=tuple(run.seed for run in runs),
        prompts=results.settings.get("evaluation_prompts", ""),
        samples=results.settings.get("samples", ""),
        stages=stages,
        domains=list(dict.fromkeys([*trained, *measured])),
        lost=_by_name([run.lost for run in runs]),
        overlaps=_overlaps(runs),
        repairs=_repairs(runs),
        comparison=_comparison(compared) if any(compared) else None,
    )


def _by_name(rows: Sequence[Mapping[str, float]]) -> Rewards:
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: Spread.of(row.get(name) for row in rows) for name in names}


def _stage(stages: Sequence[Stage]) -> StageOverSeeds:
    deltas = [stage.delta for stage in stages]
    rewards, stderr = (_by_name([getattr(stage, key) for stage in stages]) for key in ("rewards", "stderr"))
    return StageOverSeeds(stages[0].name, rewards, stderr, _delta(deltas) if any(deltas) else None, stages[0].domain)


def _delta(deltas: Sequence[StageDelta | None]) -> DeltaOverSeeds:
    known = [delta for delta in deltas if delta]
    by_place = [delta.places if delta else {} for delta in deltas]
    by_kind = [delta.kinds if delta else {} for delta in deltas]
    tensors: dict[Place, list[TensorOverSeeds]] = {}
    for name, (place, numel) in {n: (t.place, t.change.numel) for d in known for n, t in d.tensors.items()}.items():
        same = [delta.tensors.get(name) if delta else None for delta in deltas]
        changed = Spread.of(tensor.change.changed if tensor else None for tensor in same)
        tensors.setdefault(place, []).append(TensorOverSeeds(name, numel, changed))
    bins = max(len(delta.steps) for delta in known)
    return DeltaOverSeeds(
        dtypes=known[0].dtypes,
        numel=sum(tensor.change.numel for tensor in known[0].tensors.values()),
        sparsity={key: Spread.of(delta.sparsity[key] if delta else None for delta in deltas) for key in SPARSITIES},
        norm=Spread.of(delta.norm if delta else None for delta in deltas),
        steps=[Spread.of(_step_share(delta, place) for delta in deltas) for place in range(bins)],
        places={place: _place([changes.get(place) for changes in by_place], found) for place, found in tensors.items()},
        kinds=_by_name([{kind: change.squares for kind, change in kinds.items()} for kinds in by_kind]),
    )


def _step_share(delta: StageDelta | None, place: int) -> float | None:
    """The share of the changed coordinates in one bin; None where there are none."""
    if delta is None or not sum(delta.steps):
        return None
    return delta.steps[place] / sum(delta.steps) if place < len(delta.steps) else 0.0


def _place(changes: Sequence[Change | None], tensors: list[TensorOverSeeds]) -> PlaceOverSeeds:
    return PlaceOverSeeds(
        share=Spread.of(change.changed / change.numel if change and change.numel else None for change in changes),
        norm=Spread.of(math.sqrt(change.squares) if change else None for change in changes),
        per_coordinate=Spread.of(
            math.sqrt(change.squares / change.numel) if change and change.numel else None for change in changes
        ),
        tensors=tensors,
    )


def _overlaps(runs: Sequence[Run]) -> list[PairOverSeeds]:
    found = [{(pair.first, pair.second): pair for pair in run.overlaps} for run in runs]
    names = dict.fromkeys(key for pairs in found for key in pairs)
    return [_pair(key, [pairs.get(key) for pairs in found]) for key in names]


def _pair(names: tuple[str, str], pairs: Sequence[Pair | None]) -> PairOverSeeds:
    return PairOverSeeds(
        *names,
        coordinates=_shared([pair.coordinates if pair else None for pair in pairs]),
        neurons=_shared([pair.neurons if pair else None for pair in pairs]),
    )


def _shared(shares: Sequence[Shared | None]) -> SharedOverSeeds:
    return SharedOverSeeds(
        jaccard=Spread.of(share.jaccard if share else None for share in shares),
        chance=Spread.of(share.chance if share else None for share in shares),
    )


def _repairs(runs: Sequence[Run]) -> list[RepairOverSeeds]:
    found = [{(repair.rule, repair.fraction): repair for repair in run.repairs} for run in runs]
    keys = dict.fromkeys(key for repairs in found for key in repairs)
    return [_repair(key, [repairs.get(key) for repairs in found]) for key in keys]


def _repair(key: tuple[str, float | None], repairs: Sequence[Repair | None]) -> RepairOverSeeds:
    return RepairOverSeeds(
        *key,
        regained=Spread.of(repair.regained if repair else None for repair in repairs),
        kept=Spread.of(repair.kept if repair else None for repair in repairs),
        norm_share=Spread.of(repair.norm_share if repair else None for repair in repairs),
        rewards=_by_name([repair.rewards if repair else {} for repair in repairs]),
        regained_stderr=Spread.of(repair.regained_stderr if repair else None for repair in repairs),
        kept_stderr=Spread.of(repair.kept_stderr if repair else None for repair in repairs),
    )


def _comparison(compared: Sequence[Comparison | None]) -> ComparisonOverSeeds:
    target = next(comparison.target for comparison in compared if comparison)
    return ComparisonOverSeeds(
        target=target,
        start=_by_name([comparison.start if comparison else {} for comparison in compared]),
        grpo=_tuned([comparison.grpo if comparison else None for comparison in compared]),
        sft=_tuned([comparison.sft if comparison else None for comparison in compared]),
    )


def _tuned(tuned: Sequence[Tuned | None]) -> TunedOverSeeds:
    return TunedOverSeeds(
        steps=Spread.of(one.steps if one else None for one in tuned),
        rewards=_by_name([one.rewards if one else {} for one in tuned]),
        forgotten=Spread.of(one.forgotten if one else None for one in tuned),
        sparsity=_by_name([one.sparsity if one else {} for one in tuned]),
        kl_to_start=_by_name([one.kl_to_start if one else {} for one in tuned]),
    )
