"""P-values for models that should differ by seed noise alone.

How much two models differ says nothing about why: one pair of models shows the size of the difference, not the size of
the noise. So each test here exchanges what the null holds to be alike, and looks whether the data mind:

- `heads`: two tuned models, against one base. Were they runs of one recipe, either could have had either's effect of a
  head. Each head's effects change places with probability ½, and what each model keeps of the base is measured anew.
  Exact where heads vary from seed to seed independently of each other (for `mask_shift` nearly, since m_h is in units
  of the model's own effects). It does not know of noise that moves a whole model: where seeds differ in how far they
  drift, it finds differences between seeds. Then several seeds are needed:
- `seeds`: several runs of each of two recipes change recipes, whole. Exact whatever the heads' dependence, within bases
  where there are several. With k runs each no p-value is sure below 1 / (2k choose k) for one base.
- `ranked`: one model among replicates of the base that differ from it by seed noise alone.
- `lost`: a model against its base, exchanging heads between the two. Overlaps do not mind that exchange (they are the
  same read either way), so no test of one pair tells damage from noise of that size; but noise loses as many heads as
  it gains, and damage need not.
- `prompts`: a model against its base, exchanging the two for each prompt. The null is narrower: no difference but
  that of which prompts were drawn. A small value says that the circuits differ, not that training did it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from math import comb, prod

import numpy as np

from rlforget.circuits.controls import PValue, base_view, generator
from rlforget.circuits.effects import (
    KEEPS,
    HeadEffects,
    Values,
    View,
    kept,
    measure,
    own_view,
    relative,
    threshold,
    top,
)

_TIE = "correlation"  # what breaks a measure's ties: it is continuous, and says the same with less power


def heads(base: HeadEffects, first: HeadEffects, second: HeadEffects, draws: int, seed: int) -> dict[str, PValue]:
    """Test that two tuned models keep equally much of the base, against `first` keeping less.

    Where both circuits are the largest heads and of one size, they are picked anew after each exchange; otherwise the
    heads' memberships change places.

    Returns:
        Every measure's p-value; 1 for all where the two models' effects are the same to the bit.
    """
    if np.array_equal(first.scores, second.scores) and np.array_equal(first.mask, second.mask):
        return dict.fromkeys(KEEPS, PValue(1.0, 1.0, draws))
    known, level = base_view(base)
    one, two = own_view(first, level), own_view(second, level)
    random = generator(seed, first.scores, second.scores)
    # The first row is what was observed, taken through the same sums as the rest.
    swap = random.random((draws + 1, base.count)) < 0.5
    swap[0] = False
    repick = first.is_top and second.is_top and first.size == second.size

    def exchanged(x: View, y: View) -> dict[str, Values]:
        scores = np.where(swap, y.scores, x.scores)
        mask = top(scores, first.size) if repick else np.where(swap, y.mask, x.mask)
        return kept(measure(known, View(mask, scores, np.where(swap, y.soft, x.soft))))

    less, more = exchanged(one, two), exchanged(two, one)
    return _p_values({name: more[name] - less[name] for name in KEEPS}, random)


def seeds(
    first: Sequence[Sequence[dict[str, float]]], second: Sequence[Sequence[dict[str, float]]], draws: int, seed: int
) -> dict[str, PValue]:
    """Test that runs of two recipes keep equally much, against the first keeping less, by exchanging whole runs.

    Args:
        first: For each base, the measures of each run of the first recipe.
        second: For each base, those of the second; the bases in the same order.
        draws: How many exchanges to draw; all of them where they are no more than that.
        seed: Draws them and breaks ties.

    Returns:
        Every measure's p-value.
    """
    pooled = [[*one, *two] for one, two in zip(first, second, strict=True)]
    counts = [len(one) for one in first]
    values = {name: [np.array([KEEPS[name] * run[name] for run in runs]) for runs in pooled] for name in KEEPS}
    random = generator(seed, *(np.stack([per_base[i] for per_base in values.values()]) for i in range(len(pooled))))
    chosen = _relabelled(counts, [len(runs) for runs in pooled], draws, random)
    gaps = {}
    for name, per_base in values.items():
        gap = np.zeros(len(chosen[0]))
        for runs, rows in zip(per_base, chosen, strict=True):
            inside = rows @ runs / rows.sum(1)
            gap += (1 - rows) @ runs / (1 - rows).sum(1) - inside
        gaps[name] = np.round(gap / len(pooled), 10)
    return _p_values(gaps, random)


def ranked(own: dict[str, float], replicates: Sequence[dict[str, float]], seed: int) -> dict[str, PValue]:
    """Test that a model keeps as much of the base as replicates of the base do, against its keeping less.

    Args:
        own: The model's measures against the base.
        replicates: Those of each model that differs from the base by seed noise alone.
        seed: Breaks ties.

    Returns:
        Every measure's p-value, no surer than 1 / (replicates + 1).
    """
    rows = [own, *replicates]
    random = generator(seed, np.array([[row[name] for name in KEEPS] for row in rows]))
    return _p_values({name: np.round([-KEEPS[name] * row[name] for row in rows], 10) for name in KEEPS}, random)


def lost(base: HeadEffects, other: HeadEffects, seed: int) -> tuple[int, int, PValue]:
    """Test that a model lost no more of the base's heads than it gained others (McNemar's test, exact).

    Where both circuits are the largest heads and of one size they lose as many as they gain by construction; then the
    heads that clear a threshold common to both are counted, the one that as many clear as are in the two circuits.

    Returns:
        The heads lost, the heads gained, and the p-value against more being lost.
    """
    from scipy.stats import binom

    ours, theirs = base.mask, other.mask
    if base.is_top and other.is_top and base.size == other.size:
        both = np.stack([relative(base.scores), relative(other.scores)])
        level = threshold(both.reshape(-1), base.size + other.size)
        ours, theirs = both > level
    gone, new = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    if gone + new == 0:
        return 0, 0, PValue(1.0, 1.0, 0)
    law = binom(gone + new, 0.5)
    random = generator(seed, base.scores, other.scores)
    return gone, new, PValue.exact(float(law.sf(gone)), float(law.pmf(gone)), random)


def prompts(base: HeadEffects, other: HeadEffects, draws: int, seed: int) -> dict[str, PValue] | None:
    """Test that two models have the same effects on each prompt but for noise, against less being kept.

    Both circuits are cut to the base's size.

    Returns:
        Every measure's p-value; None where the two have not the same prompts with scores of their own.
    """
    if base.per_prompt is None or other.per_prompt is None or base.prompts != other.prompts or base.prompts < 2:
        return None
    if np.array_equal(base.per_prompt, other.per_prompt):
        return dict.fromkeys(KEEPS, PValue(1.0, 1.0, draws))
    random = generator(seed, base.scores, other.scores)
    swap = (random.random((draws + 1, base.prompts)) < 0.5).astype(np.float64)
    swap[0] = 0.0
    total = base.per_prompt.mean(0) + other.per_prompt.mean(0)
    means = base.per_prompt.mean(0) + swap @ (other.per_prompt - base.per_prompt) / base.prompts
    others = total - means
    # Standard errors of a mixture are its own; the binary mask stands for m_h here, so that the exchange stays exact.
    one, two = top(means, base.size), top(others, base.size)
    found = kept(measure(View(one, means, one.astype(np.float64)), View(two, others, two.astype(np.float64))))
    return _p_values({name: -values for name, values in found.items()}, random)


def _p_values(statistics: dict[str, Values], random: np.random.Generator) -> dict[str, PValue]:
    """Rank the first row of each statistic among the others, ties broken by the correlation."""
    tie = statistics[_TIE]
    found = {}
    for name, values in statistics.items():
        keys = np.stack([values, tie], axis=1)
        found[name] = PValue.of(keys[0], keys[1:], random)
    return found


def _relabelled(counts: list[int], totals: list[int], draws: int, random: np.random.Generator) -> list[Values]:
    """Mark which runs of each base are called the first recipe's, in every relabelling; the true one comes first."""
    ways = prod(comb(total, count) for count, total in zip(counts, totals, strict=True))
    if ways - 1 <= draws:
        return _every(counts, totals)
    rows = []
    for count, total in zip(counts, totals, strict=True):
        true = np.arange(total) < count
        drawn = random.permuted(np.broadcast_to(true, (draws + 1, total)), axis=1)
        drawn[0] = true
        rows.append(drawn.astype(np.float64))
    return rows


def _every(counts: list[int], totals: list[int]) -> list[Values]:
    options = []
    for count, total in zip(counts, totals, strict=True):
        chosen = [np.isin(np.arange(total), picked) for picked in combinations(range(total), count)]
        options.append(np.array(chosen, dtype=np.float64))  # combinations start with (0, 1, ...), the true one
    places = np.indices([len(option) for option in options]).reshape(len(options), -1)
    return [option[place] for option, place in zip(options, places, strict=True)]
