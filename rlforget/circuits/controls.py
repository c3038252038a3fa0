"""What a measured overlap of two circuits is to be held against: chance, a ceiling, an interval."""

from __future__ import annotations

import zlib
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from rlforget.circuits.effects import (
    HeadEffects,
    Heads,
    Values,
    View,
    measure,
    own_view,
    relative,
    threshold,
    top,
    view,
)

LEVEL = 0.95
"""The share of the draws that a band or an interval holds."""


@dataclass(frozen=True)
class Band:
    """Where the draws of a control lie.

    Attributes:
        mean: Their mean.
        low: The 2.5% quantile.
        high: The 97.5% quantile.
    """

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, draws: Values) -> Band:
        """Summarise draws: float64 [draws]."""
        low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return cls(float(draws.mean()), float(low), float(high))

    def to_dict(self) -> dict[str, float]:
        """Return mean, low and high."""
        return asdict(self)


@dataclass(frozen=True)
class PValue:
    """How often chance alone gives something as extreme.

    Attributes:
        value: Uniform on (0, 1) where the null holds, for discrete measures too: draws that tie with what was observed
            count a random share.
        at_most: The same with every tie of the statistic itself counted in full, whatever would break it: never too
            small, and too large where there are ties. Far above `value`, the statistic alone has little to say.
        draws: How many draws it comes from; 0 where it is exact.
    """

    value: float
    at_most: float
    draws: int

    @classmethod
    def of(cls, observed: Values, draws: Values, random: np.random.Generator) -> PValue:
        """Return the p-value of an observation that speaks against the null by being large.

        Args:
            observed: float64 [keys]: the statistic, then what breaks its ties, in order.
            draws: float64 [draws, keys], the same under the null.
            random: Breaks the ties that are left.
        """
        above = np.zeros(len(draws), dtype=np.bool_)
        tied = np.ones(len(draws), dtype=np.bool_)
        for key, column in zip(observed, draws.T, strict=True):
            above |= tied & (column > key)
            tied &= column == key
        total = len(draws) + 1
        reached = int((draws[:, 0] >= observed[0]).sum())
        share = random.uniform() * (1 + int(tied.sum()))
        value = (int(above.sum()) + share) / total
        return cls(float(value), (reached + 1) / total, len(draws))

    @classmethod
    def exact(cls, above: float, tied: float, random: np.random.Generator) -> PValue:
        """Return the p-value from the probabilities of more than what was observed, and of just as much."""
        return cls(float(above + random.uniform() * tied), float(min(1.0, above + tied)), 0)

    @property
    def two_sided(self) -> float:
        """The p-value against a difference either way."""
        return min(1.0, 2 * min(self.value, 1 - self.value))

    def to_dict(self) -> dict[str, float]:
        """Return every form of it."""
        return {**asdict(self), "two_sided": self.two_sided}


@dataclass(frozen=True)
class Chance:
    """The overlap of two sets of heads, one of them drawn at random: hypergeometric.

    Attributes:
        population: N, how many heads there are.
        first: |A|.
        second: |B|.
        retention: Mean of |A ∩ B| / |A|: |B| / N.
        iou: Mean of |A ∩ B| / |A ∪ B|.
    """

    population: int
    first: int
    second: int

    @property
    def retention(self) -> float:
        """|B| / N."""
        return self.second / self.population

    @property
    def iou(self) -> float:
        """The mean over all ways to draw B."""
        from scipy.stats import hypergeom

        common = np.arange(min(self.first, self.second) + 1)
        weight = hypergeom.pmf(common, self.population, self.first, self.second)
        return float((weight * common / (self.first + self.second - common)).sum())

    def p(self, common: int, random: np.random.Generator) -> PValue:
        """Return the p-value of `common` shared heads or more."""
        from scipy.stats import hypergeom

        law = hypergeom(self.population, self.first, self.second)
        return PValue.exact(float(law.sf(common)), float(law.pmf(common)), random)


def generator(seed: int, *data: Values | Heads) -> np.random.Generator:
    """Return a generator that is the same for the same seed and data, and another for other data."""
    words = [zlib.crc32(np.ascontiguousarray(part).tobytes()) for part in data]
    return np.random.default_rng([seed, *words])


def permuted(
    base: View, other: View, shape: tuple[int, int], draws: int, random: np.random.Generator, *, within_layers: bool
) -> dict[str, Values]:
    """Measure a model whose heads change places at random, so that it has nothing in common with the base.

    Args:
        base: The base, [N].
        other: The model, [N].
        shape: (layers, heads).
        draws: How many permutations.
        random: Draws them.
        within_layers: Whether heads only change places with others of their layer, so that what two circuits share by
            using the same layers is part of the null.

    Returns:
        Every measure, float64 [draws].
    """
    layers, heads = shape
    groups = np.arange(layers * heads).reshape((layers, heads) if within_layers else (1, layers * heads))
    tiled = np.broadcast_to(groups, (draws, *groups.shape))
    places = random.permuted(tiled, axis=-1).reshape(draws, -1)
    return measure(base, View(other.mask[places], other.scores[places], other.soft[places]))


@dataclass(frozen=True)
class Halves:
    """What is kept from one half of the prompts to the other, [splits] each.

    Attributes:
        base: The base on one half against the base on the other: the ceiling that no change of the weights explains.
        other: The base on one half against the model on the other: to be read beside `base`.
    """

    base: dict[str, Values]
    other: dict[str, Values]


def split_halves(
    base: HeadEffects, other: HeadEffects, size: int, splits: int, random: np.random.Generator
) -> Halves | None:
    """Compare the base with itself, and with a model, over halves of the prompts that share no prompt.

    All circuits are of one size, the heads of largest mean effect in their half.

    Returns:
        None where a model has fewer than four prompts with scores of their own, or the two have not the same prompts.
    """
    if base.per_prompt is None or base.prompts < 4:
        return None
    rows = np.broadcast_to(np.arange(base.prompts) < base.prompts // 2, (splits, base.prompts))
    first = random.permuted(rows, axis=1).astype(np.float64)
    second = 1 - first
    one, two = base.prompts // 2, base.prompts - base.prompts // 2
    a, b = first @ base.per_prompt / one, second @ base.per_prompt / two
    level = threshold(relative(a), size)
    known = view(base, a, size, level, one)
    same = measure(known, view(base, b, size, level, two))
    if other.per_prompt is None or other.prompts != base.prompts:
        return None
    return Halves(same, measure(known, view(other, second @ other.per_prompt / two, size, level, two)))


@dataclass(frozen=True)
class Resamples:
    """Weights of prompts in bootstrap draws: float64 [draws, n], each row summing to 1."""

    weights: Values

    @classmethod
    def draw(cls, prompts: int, draws: int, seed: int) -> Resamples:
        """Draw prompts with replacement; the same draws for every model with as many prompts."""
        random = np.random.default_rng([seed, prompts])
        even = np.full(prompts, 1 / prompts)
        return cls(random.multinomial(prompts, even, size=draws) / prompts)


def bootstrap(base: HeadEffects, others: dict[str, HeadEffects], draws: int, seed: int) -> dict[str, dict[str, Values]]:
    """Measure models again on prompts drawn with replacement, the same prompts for all of them.

    Each circuit keeps its size: the heads of largest mean effect in the draw.

    Returns:
        For each model that has the base's prompts, every measure as float64 [draws].
    """
    if base.per_prompt is None or base.prompts < 2:
        return {}
    weights = Resamples.draw(base.prompts, draws, seed).weights
    means = weights @ base.per_prompt
    level = threshold(relative(means), base.size)
    known = view(base, means, base.size, level, base.prompts)
    found = {}
    for name, other in others.items():
        if other.per_prompt is not None and other.prompts == base.prompts:
            seen = view(other, weights @ other.per_prompt, other.size, level, other.prompts)
            found[name] = measure(known, seen)
    return found


def interval(name: str, observed: float, draws: Values, *, gap: bool = False) -> Band:
    """Return the bootstrap interval of a measure.

    Resampling adds the prompts' noise once more, so what is kept falls in nearly every draw: the percentiles of the
    draws lie below what was measured, the more the noisier. The basic interval, 2 · observed − percentiles, turns that
    round, and covers for the smooth measures (correlation: 92 to 95% where 95% is asked, on made-up effects of 16 and
    144 heads; percentiles 25 to 66%). Counts of heads have a ceiling, which neither knows: for `retention` and `iou`
    the interval spans both (93 to 100%; percentiles alone 82 to 99%, basic alone 75 to 81%), so it is on the wide side.

    Args:
        name: The measure.
        observed: Its value.
        draws: float64 [draws], its values over the bootstrap.
        gap: Whether it is a difference of two values.

    Returns:
        The value, and the ends of the interval, within what the measure can be. It is meant to hold what unlimited
        prompts would give, so the value, which the prompts' noise lowers, may stand at its lower end.
    """
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    ends = [2 * observed - high, 2 * observed - low]
    if name in ("retention", "iou"):
        ends = [min(ends[0], low), max(ends[1], high)]
    least = -1.0 if "correlation" in name else 0.0
    width = 1.0 - least
    bounds = (-width, width) if gap else (least, 1.0)
    clipped = np.clip([min(ends[0], observed), max(ends[1], observed)], *bounds)
    return Band(observed, float(clipped[0]), float(clipped[1]))


def over_sizes(base: HeadEffects, other: HeadEffects, sizes: list[int], splits: int, seed: int) -> list[dict[str, Any]]:
    """Measure retention with both circuits cut to one size, over sizes, with its band of chance and its ceiling."""
    from scipy.stats import hypergeom

    rows: list[dict[str, Any]] = []
    for size in sizes:
        common = int((top(base.scores, size) & top(other.scores, size)).sum())
        law = hypergeom(base.count, size, size)
        random = generator(seed, base.scores, other.scores)
        halves = split_halves(base, other, size, splits, random)
        rows.append(
            {
                "size": size,
                "retention": common / size,
                "chance": size / base.count,
                "chance_low": float(law.ppf((1 - LEVEL) / 2)) / size,
                "chance_high": float(law.ppf((1 + LEVEL) / 2)) / size,
                "ceiling": None if halves is None else float(halves.base["retention"].mean()),
                "at_halves": None if halves is None else float(halves.other["retention"].mean()),
            }
        )
    return rows


def from_chance_to_ceiling(value: float, chance: float, ceiling: float) -> float:
    """Return where a value lies between chance (0) and the ceiling (1); NaN where the two are not apart."""
    return (value - chance) / (ceiling - chance) if ceiling > chance else float("nan")


def base_view(base: HeadEffects) -> tuple[View, Values]:
    """Return the base as it was found, and the threshold that its circuit clears."""
    level = threshold(relative(base.scores), base.size)
    return own_view(base, level), level
