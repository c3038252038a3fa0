"""What one model keeps of its base's circuit, each measure beside its controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlforget.circuits import exchange
from rlforget.circuits.controls import (
    Band,
    Chance,
    Halves,
    PValue,
    base_view,
    from_chance_to_ceiling,
    generator,
    interval,
    over_sizes,
    permuted,
    split_halves,
)
from rlforget.circuits.effects import KEEPS, HeadEffects, Values, measure, own_view


@dataclass(frozen=True)
class Measured:
    """One measure of a model against its base, and what to hold it against.

    Attributes:
        value: The measure of the two circuits as they were found.
        chance: Its mean where the model's heads are drawn at random: hypergeometric for `retention` and `iou`, the mean
            of the permutations for the others.
        null: The same by permuting the model's heads.
        null_within_layers: By permuting them within their layers, which keeps how many of each layer are used.
        matched: The value with the model's circuit cut or grown to the base's size.
        matched_chance: The chance level there.
        ceiling: The base against itself, on halves of the prompts; None without per-prompt scores.
        at_halves: The base against the model on the other half: what to read beside `ceiling`.
        interval: Bootstrap interval over prompts; None without per-prompt scores.
        p_chance: Against no more being kept than by chance. Hypergeometric for `retention` and `iou`, else permutation.
        p_prompts: Against the model being the base on other prompts: small where less is kept than that would.
        p_seeds: Against the model being a replicate of the base: small where less is kept than replicates keep. None
            without replicates: one pair of models cannot tell damage from seed noise of its size.
    """

    value: float
    chance: float
    null: Band
    null_within_layers: Band
    matched: float
    matched_chance: float
    ceiling: Band | None
    at_halves: Band | None
    interval: Band | None
    p_chance: PValue
    p_prompts: PValue | None
    p_seeds: PValue | None

    @property
    def from_chance_to_ceiling(self) -> float | None:
        """Where the value lies between chance (0) and the ceiling (1), both on halves and at the base's size."""
        if self.ceiling is None or self.at_halves is None:
            return None
        place = from_chance_to_ceiling(self.at_halves.mean, self.matched_chance, self.ceiling.mean)
        return place if np.isfinite(place) else None

    def to_dict(self) -> dict[str, Any]:
        """Return every figure, None where there is none."""
        parts = {name: getattr(self, name) for name in self.__dataclass_fields__}
        plain = {name: part.to_dict() if hasattr(part, "to_dict") else part for name, part in parts.items()}
        return {**plain, "from_chance_to_ceiling": self.from_chance_to_ceiling}


@dataclass(frozen=True)
class Kept:
    """What a model keeps of its base's circuit.

    Attributes:
        size: How many heads its circuit has.
        measures: `retention`, `iou`, `correlation`, `rank_correlation`, `mask_shift` (see `effects.measure`).
        mask_shift: float64 [layers, heads], m_h of the model less m_h of the base.
        lost: Heads of the base's circuit that are not in the model's; see `exchange.lost` for circuits of one size.
        gained: The reverse.
        p_lost: Against the two differing by seed noise alone, in which as many heads come as go.
        sizes: Retention with both circuits cut to one size, over sizes (see `controls.over_sizes`).
    """

    size: int
    measures: dict[str, Measured]
    mask_shift: Values
    lost: int
    gained: int
    p_lost: PValue
    sizes: list[dict[str, Any]]

    def __getitem__(self, name: str) -> Measured:
        return self.measures[name]

    @property
    def retention(self) -> Measured:
        """|C_base ∩ C| / |C_base|, beside its controls."""
        return self.measures["retention"]

    def to_dict(self) -> dict[str, Any]:
        """Return every figure as plain JSON values."""
        return {
            "size": self.size,
            "measures": {name: one.to_dict() for name, one in self.measures.items()},
            "mask_shift": self.mask_shift.tolist(),
            "lost": self.lost,
            "gained": self.gained,
            "p_lost": self.p_lost.to_dict(),
            "sizes": self.sizes,
        }


@dataclass(frozen=True)
class Draws:
    """How often to draw each control.

    Attributes:
        permutations: Of heads for the null, and exchanges for p-values.
        splits: Of the prompts into halves.
        bootstrap: Draws of prompts.
        seed: Seed of all of them.
    """

    permutations: int = 1000
    splits: int = 100
    bootstrap: int = 1000
    seed: int = 0


def keep(
    base: HeadEffects,
    other: HeadEffects,
    resampled: Mapping[str, Values] | None,
    replicates: Sequence[HeadEffects],
    draws: Draws,
    sizes: list[int],
) -> Kept:
    """Hold a model's circuit against its base's.

    Args:
        base: The base's heads.
        other: The model's.
        resampled: Its measures over the bootstrap, from `controls.bootstrap`.
        replicates: Heads of models that differ from the base by seed noise alone.
        draws: How often to draw.
        sizes: For the curve of retention over sizes.
    """
    known, level = base_view(base)
    seen = own_view(other, level)
    random = generator(draws.seed, base.scores, other.scores)
    own, matched = plain(measure(known, seen)), plain(measure(known, own_view(other, level, base.size)))
    nulls = [
        permuted(known, seen, base.shape, draws.permutations, random, within_layers=within) for within in (False, True)
    ]
    matched_null = permuted(
        known, own_view(other, level, base.size), base.shape, draws.permutations, random, within_layers=False
    )
    halves = split_halves(base, other, base.size, draws.splits, random)
    by_prompts = exchange.prompts(base, other, draws.permutations, draws.seed)
    others = [plain(measure(known, own_view(one, level))) for one in replicates]
    by_seeds = exchange.ranked(own, others, draws.seed) if others else None
    chance = _chances(base, other.size, nulls[0])
    matched_chance = _chances(base, base.size, matched_null)
    measures = {}
    for name in KEEPS:
        ceiling, at_halves = _halves(halves, name)
        measures[name] = Measured(
            own[name],
            chance[name],
            Band.of(nulls[0][name]),
            Band.of(nulls[1][name]),
            matched[name],
            matched_chance[name],
            ceiling,
            at_halves,
            None if resampled is None else interval(name, own[name], resampled[name]),
            _p_chance(name, base, other, own, nulls[0], random),
            None if by_prompts is None else by_prompts[name],
            None if by_seeds is None else by_seeds[name],
        )
    gone, new, p_lost = exchange.lost(base, other, draws.seed)
    shift = (seen.soft - known.soft).reshape(base.shape)
    curve = over_sizes(base, other, sizes, draws.splits, draws.seed)
    return Kept(other.size, measures, shift, gone, new, p_lost, curve)


def plain(measures: dict[str, Values]) -> dict[str, float]:
    """Return the measures of one pair of models as numbers."""
    return {name: float(value) for name, value in measures.items()}


def _chances(base: HeadEffects, size: int, null: dict[str, Values]) -> dict[str, float]:
    exact = Chance(base.count, base.size, size)
    means = {name: float(draws.mean()) for name, draws in null.items()}
    return {**means, "retention": exact.retention, "iou": exact.iou}


def _halves(halves: Halves | None, name: str) -> tuple[Band | None, Band | None]:
    if halves is None:
        return None, None
    return Band.of(halves.base[name]), Band.of(halves.other[name])


def _p_chance(
    name: str,
    base: HeadEffects,
    other: HeadEffects,
    own: dict[str, float],
    null: dict[str, Values],
    random: np.random.Generator,
) -> PValue:
    if name in ("retention", "iou"):  # with both sizes given, each grows with the heads in common
        return Chance(base.count, base.size, other.size).p(int((base.mask & other.mask).sum()), random)
    return PValue.of(KEEPS[name] * np.array([own[name]]), KEEPS[name] * null[name][:, None], random)
