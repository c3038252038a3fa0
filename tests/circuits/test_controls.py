"""Chance, ceiling and intervals, against counting by hand and against the truth of drawn effects."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlforget.circuits.controls import (
    Chance,
    PValue,
    base_view,
    bootstrap,
    from_chance_to_ceiling,
    generator,
    interval,
    permuted,
    split_halves,
)
from rlforget.circuits.effects import HeadEffects, View, measure, own_view, relative, threshold, top
from rlforget.errors import ConfigError, NonFiniteError
from tests.circuits.made_circuits import effects, of_mask, replicates


def test_the_papers_overlaps_beside_their_chance_levels() -> None:
    # 576 heads, circuits of 297 (base), 265 (SFT) and 296 (RL), 153 and 200 in common: arXiv 2605.28860.
    order = np.arange(576)
    base, sft = order < 297, (order < 153) | (order >= 576 - (265 - 153))
    rl = (order < 200) | (order >= 576 - (296 - 200))
    scores = np.ones(576)
    kept = [measure(View(base, scores, scores), View(mask, scores, scores))["retention"] for mask in (sft, rl)]
    assert [f"{100 * value:.1f}" for value in kept] == ["51.5", "67.3"]
    chances = [Chance(576, 297, size) for size in (265, 296)]
    assert [f"{100 * chance.retention:.1f}" for chance in chances] == ["46.0", "51.4"]
    random = np.random.default_rng(0)
    assert chances[0].p(153, random).at_most < 0.01
    assert chances[1].p(200, random).at_most < 1e-10


@pytest.mark.parametrize(("population", "first", "second"), [(7, 3, 4), (6, 6, 2), (5, 1, 1)])
def test_chance_is_the_mean_over_every_circuit_of_that_size(population: int, first: int, second: int) -> None:
    fixed = set(range(first))
    shared = [len(fixed & set(drawn)) for drawn in combinations(range(population), second)]
    chance = Chance(population, first, second)
    assert chance.retention == pytest.approx(np.mean(shared) / first)
    assert chance.iou == pytest.approx(np.mean([x / (first + second - x) for x in shared]))
    for common in set(shared):
        p = chance.p(common, np.random.default_rng(0))
        assert p.at_most == pytest.approx(np.mean([x >= common for x in shared]))
        assert np.mean([x > common for x in shared]) <= p.value <= p.at_most


def test_permuted_heads_meet_chance_and_keep_their_layers() -> None:
    random = np.random.default_rng(0)
    # Both circuits use layer 0 alone, three of its four heads: chance says 3/16, within the layer it is 3/4.
    mask = np.zeros(16, dtype=bool)
    mask[:3] = True
    view = View(mask, random.normal(size=16), mask.astype(float))
    free = permuted(view, view, (4, 4), 4000, random, within_layers=False)
    within = permuted(view, view, (4, 4), 4000, random, within_layers=True)
    assert free["retention"].mean() == pytest.approx(3 / 16, abs=0.02)
    assert within["retention"].mean() == pytest.approx(3 / 4, abs=0.02)
    assert free["correlation"].mean() == pytest.approx(0.0, abs=0.03)


def test_a_base_without_prompt_noise_has_a_ceiling_of_one() -> None:
    (still,) = replicates(np.random.default_rng(0), 1, prompt_noise=0.0)
    halves = split_halves(effects(still), effects(still), 5, 20, np.random.default_rng(0))
    assert halves is not None
    assert (halves.base["retention"] == 1).all()
    assert (halves.other["correlation"] > 0.999).all()


def test_the_ceiling_falls_with_the_prompts_noise() -> None:
    ceilings = []
    for noise in (0.2, 1.0, 5.0):
        base, other = replicates(np.random.default_rng(1), 2, shape=(8, 8), size=16, prompt_noise=noise)
        halves = split_halves(effects(base), effects(other), 16, 50, np.random.default_rng(0))
        assert halves is not None
        ceilings.append(halves.base["retention"].mean())
    assert ceilings == sorted(ceilings, reverse=True)
    assert ceilings[0] - ceilings[-1] > 0.2


def test_halves_hold_no_prompt_in_common() -> None:
    # Prompt i brings out head i alone: what one half needs, the other does not know of.
    apart = HeadEffects(np.full(6, 1 / 6), np.arange(6) < 3, np.eye(6), (2, 3))
    halves = split_halves(apart, apart, 3, 30, np.random.default_rng(0))
    assert halves is not None
    assert (halves.base["retention"] == 0).all()
    assert (halves.other["retention"] == 0).all()


def test_a_copy_keeps_all_in_every_resample() -> None:
    (one,) = replicates(np.random.default_rng(2), 1)
    draws = bootstrap(effects(one), {"copy": effects(one)}, 50, 0)["copy"]
    assert (draws["retention"] == 1).all()
    assert (draws["mask_shift"] == 0).all()
    spread = interval("retention", 1.0, draws["retention"])
    assert (spread.low, spread.high) == (1.0, 1.0)


@pytest.mark.parametrize("name", ["retention", "correlation"])
def test_intervals_hold_what_unlimited_prompts_would_give(name: str) -> None:
    random = np.random.default_rng(3)
    inside, reps = 0, 150
    for index in range(reps):
        shared = random.standard_t(3, 36) * (random.random(36) < 0.4) + 0.1 * random.normal(size=36)
        true = [shared + 0.3 * random.normal(size=36) for _ in range(2)]
        common = 0.5 * random.normal(size=(40, 36))
        drawn = [one + common + random.normal(size=(40, 36)) for one in true]
        base, other = (HeadEffects(d.mean(0), top(d.mean(0), 9), d, (6, 6)) for d in drawn)
        wanted = measure(*(View(top(one, 9), one, one) for one in true))[name]
        known, level = base_view(base)
        observed = float(measure(known, own_view(other, level))[name])
        band = interval(name, observed, bootstrap(base, {"m": other}, 200, index)["m"][name])
        inside += band.low - 1e-9 <= wanted <= band.high + 1e-9
    assert inside / reps > 0.88


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 10_000))
def test_measures_are_what_their_formulas_say(layers: int, heads: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    count = layers * heads
    a, b = random.normal(size=(2, count))
    size, other = random.integers(1, count + 1, 2)
    one, two = View(top(a, size), a, top(a, size) * 1.0), View(top(b, other), b, top(b, other) * 1.0)
    first, second = set(np.flatnonzero(one.mask)), set(np.flatnonzero(two.mask))
    found = measure(one, two)
    assert found["retention"] == len(first & second) / len(first)
    assert found["iou"] == len(first & second) / len(first | second)
    assert found["mask_shift"] == pytest.approx(len(first ^ second) / count)
    if count > 2:
        assert found["correlation"] == pytest.approx(np.corrcoef(a, b)[0, 1])
    batch = measure(one, View(np.stack([two.mask] * 2), np.stack([b, b]), np.stack([two.soft] * 2)))
    assert all((batch[name] == found[name]).all() or np.allclose(batch[name], found[name]) for name in found)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=30), st.data())
def test_top_is_the_circuits_own(values: list[int], data: st.DataObject) -> None:
    size = data.draw(st.integers(0, len(values)))
    scores = torch.tensor([values], dtype=torch.float32)
    circuit = of_mask(scores, torch.ones(1, len(values), dtype=torch.bool))
    assert np.array_equal(top(np.array(values, dtype=float), size), circuit.top(size)[0].numpy())


def test_the_threshold_is_what_the_circuit_clears_whatever_the_scale() -> None:
    values = np.array([3.0, -1.0, 5.0, 0.5, 2.0, 0.1])
    assert ((relative(values) > threshold(relative(values), 2)) == top(values, 2)).all()
    assert np.allclose(relative(7 * values), relative(values))
    assert (values > threshold(values, 6)).all()
    assert threshold(values, 5) == 0.05  # not half-way to the one that hurts: no head without effect clears it


def test_a_p_value_counts_what_is_above_and_a_share_of_the_ties() -> None:
    draws = np.array([[1.0, 0], [2, 0], [2, 1], [3, 0]])
    found = [PValue.of(np.array([2.0, 0.5]), draws, np.random.default_rng(seed)) for seed in range(400)]
    assert all(2 / 5 <= p.value <= 3 / 5 for p in found)  # above: (3, 0) and (2, 1); tied: only itself
    assert np.mean([p.value for p in found]) == pytest.approx(0.5, abs=0.02)
    assert {p.at_most for p in found} == {4 / 5}
    assert found[0].two_sided == pytest.approx(2 * min(found[0].value, 1 - found[0].value))


def test_generators_follow_the_data() -> None:
    one, other = np.zeros(3), np.ones(3)
    assert generator(0, one).random() == generator(0, one).random()
    assert len({generator(0, one).random(), generator(0, other).random(), generator(1, one).random()}) == 3


def test_from_chance_to_ceiling() -> None:
    assert from_chance_to_ceiling(0.6, 0.2, 0.8) == pytest.approx(2 / 3)
    assert np.isnan(from_chance_to_ceiling(0.6, 0.8, 0.8))


def test_circuits_that_cannot_be_compared_are_refused() -> None:
    scores, mask = torch.ones(2, 2), torch.ones(2, 2, dtype=torch.bool)
    with pytest.raises(ConfigError, match="at least one head"):
        HeadEffects.of(of_mask(scores, ~mask))
    with pytest.raises(ConfigError, match="mean over the prompts"):
        HeadEffects.of(of_mask(scores, mask, torch.zeros(3, 2, 2)))
    with pytest.raises(NonFiniteError):
        HeadEffects.of(of_mask(scores, mask, torch.full((3, 2, 2), float("nan"))))
