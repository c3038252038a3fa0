"""Intervals that cover, overlaps as sets have them, and searches repeated."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rlforget.circuits.intervals import bootstrap
from rlforget.circuits.repeats import halve, jaccard, off_diagonal_mean, stability
from rlforget.circuits.task import Task
from rlforget.errors import ConfigError
from tests.circuits.tiny_models import task_of_ids, tiny


def test_a_95_percent_interval_covers_the_truth_about_19_times_in_20() -> None:
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for draw in range(200):
        sample = torch.randn(1, 60, generator=generator) + 3.0
        found = bootstrap(sample, lambda means: means[0], draws=300, seed=draw)
        covered += found.low <= 3.0 <= found.high
    assert 0.89 <= covered / 200 <= 0.98


def test_a_ratio_is_resampled_with_its_parts_together() -> None:
    values = torch.rand(1, 40, generator=torch.Generator().manual_seed(0)) + 0.1
    found = bootstrap(torch.cat([values, 2 * values]), lambda means: means[1] / means[0])
    assert (found.low, found.high) == (pytest.approx(2.0), pytest.approx(2.0))  # apart they would vary


def test_a_draw_without_a_value_widens_the_interval() -> None:
    values = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    found = bootstrap(values, lambda means: 1 / means[0], draws=500)
    assert (found.low, found.high, found.estimate) == (-torch.inf, torch.inf, 4.0)


def test_an_interval_narrows_with_prompts_and_widens_with_its_level() -> None:
    values = torch.randn(1, 400, generator=torch.Generator().manual_seed(0))

    def width(sample: Tensor, level: float = 0.95) -> float:
        found = bootstrap(sample, lambda means: means[0], level=level)
        return found.high - found.low

    assert width(values) < 0.5 * width(values[:, :50])
    assert width(values, 0.5) < width(values) < width(values, 0.99)


@pytest.mark.parametrize(("prompts", "draws", "level"), [(0, 10, 0.95), (5, 0, 0.95), (5, 10, 1.0), (5, 10, 0.0)])
def test_bad_settings_are_named(prompts: int, draws: int, level: float) -> None:
    with pytest.raises(ConfigError):
        bootstrap(torch.ones(1, prompts), lambda means: means[0], draws=draws, level=level)


@given(st.lists(st.sets(st.integers(0, 11)), min_size=1, max_size=5))
def test_jaccard_is_that_of_sets(sets: list[set[int]]) -> None:
    masks = torch.zeros(len(sets), 12, dtype=torch.bool)
    for mask, chosen in zip(masks, sets, strict=True):
        mask[list(chosen)] = True
    found = jaccard(list(masks.view(-1, 3, 4)))
    expected = [[len(a & b) / len(a | b) if a | b else 1.0 for b in sets] for a in sets]
    assert found.tolist() == expected


def test_masks_of_other_models_are_refused() -> None:
    with pytest.raises(ConfigError):
        jaccard([torch.ones(2, 2), torch.ones(2, 3)])
    with pytest.raises(ConfigError):
        jaccard([])


def test_the_mean_leaves_the_diagonal_out() -> None:
    assert off_diagonal_mean(torch.tensor([[1.0, 0.2, 0.4], [0.2, 1.0, 0.6], [0.4, 0.6, 1.0]])) == pytest.approx(0.4)
    assert off_diagonal_mean(torch.ones(1, 1)) != off_diagonal_mean(torch.ones(1, 1))  # NaN: there is no pair


@given(st.integers(2, 15), st.integers(0, 5))
def test_halves_part_the_pairs(count: int, seed: int) -> None:
    task = Task("t", task_of_ids(count).pairs)
    first, second = halve(task, seed=seed)
    assert 0 <= len(first) - len(second) <= 1
    assert sorted(map(id, [*first.pairs, *second.pairs])) == sorted(map(id, task.pairs))


def test_repeats_agree_as_far_as_the_method_draws() -> None:
    model, task = tiny("qwen2"), task_of_ids(8)
    exact = stability(model, task, method="patching", size=3, splits=2)
    assert torch.equal(exact.seeds, torch.ones(3, 3, dtype=torch.float64))
    assert len(exact.halves) == 2
    drawn = stability(model, task, method="random", size=3, seeds=range(6), splits=1)
    assert off_diagonal_mean(drawn.seeds) < 0.7
    assert drawn.halves.tolist() == [1.0]  # both halves take the first seed, and the method does not look at them
    assert {int(circuit.mask.sum()) for circuit in drawn.circuits} == {3}
    json.dumps(exact.to_dict())


def test_what_cannot_be_repeated_is_named() -> None:
    model = tiny("qwen2")
    with pytest.raises(ConfigError):
        stability(model, task_of_ids(), seeds=())
    with pytest.raises(ConfigError):
        stability(model, task_of_ids(1), method="patching")
