"""How two recipes differ in what they keep of a base's circuit, and the heads that only one of them breaks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np

from rlforget.circuits import exchange
from rlforget.circuits.controls import Band, PValue, base_view, generator, interval
from rlforget.circuits.effects import KEEPS, HeadEffects, Heads, Values, measure, own_view
from rlforget.circuits.kept import Draws, plain


@dataclass(frozen=True)
class Vulnerable:
    """The heads that the first model lost and the second kept: {h : m_h^first < m_h^second − δ} (arXiv 2605.28860).

    Attributes:
        delta: δ.
        heads: bool [layers, heads].
        count: How many they are.
        reverse: How many heads it is the other way round for, {h : m_h^second < m_h^first − δ}: by seed noise alone as
            many, so that `count` by itself says nothing.
        in_base: How many of the heads are in the base's circuit.
        reverse_in_base: How many of the reverse are.
        p: Against either way being as likely for each head (McNemar's test, exact).
    """

    delta: float
    heads: Heads
    count: int
    reverse: int
    in_base: int
    reverse_in_base: int
    p: PValue

    @property
    def expected(self) -> float:
        """How many there would be on the average, did the two models differ by seed noise alone."""
        return (self.count + self.reverse) / 2

    def to_dict(self) -> dict[str, Any]:
        """Return counts, and the heads as [layer, head]."""
        return {
            **asdict(self),
            "heads": np.argwhere(self.heads).tolist(),
            "expected": self.expected,
            "p": self.p.to_dict(),
        }


@dataclass(frozen=True)
class Gap:
    """The difference of one measure between two models: that of the second less that of the first.

    Attributes:
        value: The difference of the means over runs.
        interval: Bootstrap interval over prompts, the same prompts for both; None without per-prompt scores.
        p: Against the two differing by seed noise alone: small where the first keeps less. From `exchange.seeds` where
            there are several runs of a recipe, else from `exchange.heads`.
    """

    value: float
    interval: Band | None
    p: PValue

    def to_dict(self) -> dict[str, Any]:
        """Return every figure."""
        spread = None if self.interval is None else self.interval.to_dict()
        return {"value": self.value, "interval": spread, "p": self.p.to_dict()}


@dataclass(frozen=True)
class Difference:
    """Two recipes from one base.

    Attributes:
        first: Name of the first, the one suspected of keeping less.
        second: Name of the second.
        test: `heads` or `seeds`: what the p-values of `gaps` exchange (see `exchange`).
        gaps: For each measure, the second's less the first's.
        vulnerable: For each δ, the heads that the first broke and the second kept.
    """

    first: str
    second: str
    test: str
    gaps: dict[str, Gap]
    vulnerable: list[Vulnerable]

    def __getitem__(self, name: str) -> Gap:
        return self.gaps[name]

    @property
    def broken(self) -> Vulnerable | None:
        """The vulnerable heads at the least δ above 0 that has any."""
        return next((one for one in self.vulnerable if one.delta > 0 and one.count), None)

    def to_dict(self) -> dict[str, Any]:
        """Return every figure as plain JSON values."""
        return {
            "first": self.first,
            "second": self.second,
            "test": self.test,
            "gaps": {name: gap.to_dict() for name, gap in self.gaps.items()},
            "vulnerable": [one.to_dict() for one in self.vulnerable],
        }


Runs = Sequence[HeadEffects]


def differ(
    base: HeadEffects,
    names: tuple[str, str],
    runs: tuple[Runs, Runs],
    resampled: tuple[Sequence[Mapping[str, Values]], Sequence[Mapping[str, Values]]],
    deltas: Sequence[float],
    draws: Draws,
) -> Difference:
    """Hold two recipes against each other.

    Args:
        base: The base's heads.
        names: The recipes' names.
        runs: The heads of each recipe's runs.
        resampled: For each recipe, the measures of its runs over the bootstrap; none where a run has none.
        deltas: The values of δ.
        draws: How often to draw.
    """
    known, level = base_view(base)
    found = [[plain(measure(known, own_view(run, level))) for run in one] for one in runs]
    single = len(runs[0]) == len(runs[1]) == 1
    if single:
        p_values = exchange.heads(base, runs[0][0], runs[1][0], draws.permutations, draws.seed)
    else:
        p_values = exchange.seeds([found[0]], [found[1]], draws.permutations, draws.seed)
    gaps = {}
    for name in KEEPS:
        value = float(np.mean([run[name] for run in found[1]]) - np.mean([run[name] for run in found[0]]))
        spread = None
        if resampled[0] and resampled[1]:
            means = [np.mean([run[name] for run in one], axis=0) for one in resampled]
            spread = interval(name, value, means[1] - means[0], gap=True)
        gaps[name] = Gap(value, spread, p_values[name])
    soft = tuple(np.mean([own_view(run, level).soft for run in one], axis=0) for one in runs)
    vulnerable = [_vulnerable(base, cast(tuple[Values, Values], soft), delta, draws.seed) for delta in deltas]
    return Difference(*names, "heads" if single else "seeds", gaps, vulnerable)


def _vulnerable(base: HeadEffects, soft: tuple[Values, Values], delta: float, seed: int) -> Vulnerable:
    from scipy.stats import binom

    first, second = soft
    heads, reverse = first < second - delta, second < first - delta
    count, other = int(heads.sum()), int(reverse.sum())
    law = binom(count + other, 0.5)
    p = PValue(1.0, 1.0, 0)
    if count + other > 0:
        p = PValue.exact(float(law.sf(count)), float(law.pmf(count)), generator(seed, first, second, np.array([delta])))
    inside = int((heads & base.mask).sum()), int((reverse & base.mask).sum())
    return Vulnerable(delta, heads.reshape(base.shape), count, other, *inside, p)
