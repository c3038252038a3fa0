"""P-values: 5% below 0.05 where models differ by seed noise alone, and small where they do not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import numpy as np
import pytest
import torch

from rlforget.circuits import Circuit, exchange
from rlforget.circuits.controls import base_view
from rlforget.circuits.effects import KEEPS, measure, own_view
from rlforget.circuits.kept import plain
from tests.circuits.made_circuits import below, circuit, effects, of_mask, replicates

DRAWS = 800  # the standard error of a share of 5% is then 0.8%


def measures(base: Circuit, other: Circuit) -> dict[str, float]:
    known, level = base_view(effects(base))
    return plain(measure(known, own_view(effects(other), level)))


def damaged(one: Circuit, share: float, random: np.random.Generator, size: int) -> Circuit:
    """Take away the effect of some heads of the circuit, and leave the prompts' noise."""
    assert one.per_prompt is not None
    values = one.per_prompt.flatten(1).double().numpy().copy()
    chosen = np.flatnonzero(one.mask.flatten().numpy())
    lost = random.choice(chosen, max(1, round(share * len(chosen))), replace=False)
    values[:, lost] -= values[:, lost].mean(0)
    return circuit(values, tuple(one.mask.shape), size)


def test_binary_masks_alone_are_honest_too() -> None:
    random = np.random.default_rng(1)
    found, sure = [], []
    for _ in range(DRAWS):
        parts = [np.abs(r.scores.numpy()) > 0.4 for r in replicates(random, 3)]
        if all(mask.any() for mask in parts):
            base, one, two = (effects(of_mask(torch.tensor(m * 1.0), torch.tensor(m))) for m in parts)
            p = exchange.heads(base, one, two, 100, 0)["retention"]
            found.append(p.value)
            sure.append(p.at_most)
    assert len(found) > 400
    assert 0.03 <= below(found) <= 0.07
    assert below(sure) <= below(found)


def test_models_that_lost_heads_are_told_apart() -> None:
    random = np.random.default_rng(2)
    small = defaultdict(list)
    for _ in range(60):
        base, one, two = replicates(random, 3, shape=(8, 8), size=16, seed_noise=0.1)
        lost = damaged(one, 0.5, random, 16)
        for name, p in exchange.heads(effects(base), effects(lost), effects(two), 200, 0).items():
            small[name].append(p.value)
        back = exchange.heads(effects(base), effects(two), effects(lost), 200, 0)
        small["the other way round"].append(back["retention"].value)
    assert below(small["retention"]) > 0.7
    assert below(small["correlation"]) > 0.3  # a few heavy heads decide it
    assert below(small["the other way round"]) == 0


def test_whole_runs_are_honest_where_heads_vary_together() -> None:
    # Seeds differ in how far they drift, all heads alike: single heads are then no evidence, runs are.
    random = np.random.default_rng(3)
    by_runs, by_heads = [], []
    for _ in range(400):
        first: list[list[dict[str, float]]] = []
        second: list[list[dict[str, float]]] = []
        for _ in range(2):
            shared = random.standard_t(3, 36)
            drifts = 0.5 * np.exp(0.7 * random.normal(size=6))
            made = [shared + d * random.normal(size=36) for d in (0.0, *drifts)]
            base, *runs = (circuit(np.stack([m, m]), (6, 6), 9) for m in made)
            values = [measures(base, run) for run in runs]
            first.append(values[:3])
            second.append(values[3:])
        by_runs.append(exchange.seeds(first, second, 100, 0)["retention"].value)
        by_heads.append(exchange.heads(effects(base), effects(runs[0]), effects(runs[1]), 60, 0)["correlation"].value)
    assert 0.03 <= below(by_runs) <= 0.07
    assert below(by_heads) > 0.1  # why several seeds are asked for


def test_every_exchange_of_runs_is_counted_where_they_are_few() -> None:
    def run(value: float) -> dict[str, float]:
        return {**dict.fromkeys(KEEPS, value), "mask_shift": -value}

    low, high = [run(0.1), run(0.2), run(0.3)], [run(0.7), run(0.8), run(0.9)]
    one = exchange.seeds([low], [high], 1000, 0)
    assert {p.draws for p in one.values()} == {19}
    assert {p.at_most for p in one.values()} == {1 / 20}
    assert {p.at_most for p in exchange.seeds([high], [low], 1000, 0).values()} == {1.0}
    three = exchange.seeds([low] * 3, [high] * 3, 100_000, 0)["retention"]
    assert (three.draws, three.at_most) == (7999, 1 / 8000)
    drawn = exchange.seeds([low] * 3, [high] * 3, 500, 0)["retention"]
    assert drawn.draws == 500
    assert drawn.at_most < 0.01


def test_a_model_among_replicates_of_its_base() -> None:
    random = np.random.default_rng(4)
    values = []
    for _ in range(400):
        base, *others = replicates(random, 6)
        found = [measures(base, one) for one in others]
        values.append(exchange.ranked(found[0], found[1:], 0)["retention"].value)
    assert 0.03 <= below(values) <= 0.07
    base, *others = replicates(random, 25, seed_noise=0.1, shape=(8, 8), size=16)
    broken = measures(base, damaged(others[0], 0.6, random, 16))
    p = exchange.ranked(broken, [measures(base, one) for one in others[1:]], 0)["correlation"]
    assert p.at_most == 1 / 24


@pytest.mark.parametrize("native", ["top", "threshold"])
def test_as_many_heads_come_as_go_by_seed_noise(native: str) -> None:
    random = np.random.default_rng(5)
    values = []
    for _ in range(DRAWS):
        pair = replicates(random, 2, shape=(8, 8), size=16)
        if native == "threshold":
            pair = [of_mask(one.scores, one.scores > 0.3, one.per_prompt) for one in pair]
        base, other = map(effects, pair)
        values.append(exchange.lost(base, other, 0)[2].value)
    assert 0.03 <= below(values) <= 0.07


def test_heads_that_only_go_are_noticed() -> None:
    random = np.random.default_rng(6)
    base, other = replicates(random, 2, shape=(8, 8), size=30, seed_noise=0.02, prompt_noise=0.05)
    fewer = damaged(other, 0.5, random, 14)
    gone, new, p = exchange.lost(effects(base), effects(fewer), 0)
    assert gone > 10 > new
    assert p.at_most < 0.01


def test_one_model_on_other_prompts_is_one_model() -> None:
    random = np.random.default_rng(7)
    values: list[float] = []
    for _ in range(DRAWS):
        base, other = replicates(random, 2, seed_noise=0.0, prompt_noise=2.0)
        p = exchange.prompts(effects(base), effects(other), 60, 0)
        assert p is not None
        values.append(p["retention"].value)
    assert 0.03 <= below(values) <= 0.07


@pytest.mark.parametrize("test", [exchange.heads, exchange.prompts], ids=["heads", "prompts"])
def test_the_same_model_twice_is_no_evidence(test: Callable[..., dict[str, object]]) -> None:
    base, other = map(effects, replicates(np.random.default_rng(8), 2))
    arguments = (base, other, other) if test is exchange.heads else (base, base)
    assert all(p.value == 1.0 for p in test(*arguments, 50, 0).values())  # type: ignore[attr-defined]


def test_the_same_seed_gives_the_same_p_values() -> None:
    base, one, two = map(effects, replicates(np.random.default_rng(9), 3))
    assert exchange.heads(base, one, two, 50, 0) == exchange.heads(base, one, two, 50, 0)
    assert exchange.heads(base, one, two, 50, 0) != exchange.heads(base, one, two, 50, 1)
