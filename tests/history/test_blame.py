"""Blame, beside a plain count over the stages' bits."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlforget.delta import diff
from rlforget.delta.composed import ComposedWeights
from rlforget.delta.layers import MemoryLayer
from rlforget.errors import CoordinateError, UnknownNameError
from rlforget.history.stage import Stage
from rlforget.history.tracing import biography, blame, summarise
from rlforget.weights import DTYPES, open_weights
from rlforget_kernels.common.bits import as_bits
from tests.delta.random_weights import Tensors, random_tensor, same_bits, tuned
from tests.history.made import made_index

NAME = "model.layers.3.mlp.up_proj.weight"


def composed(states: list[Tensors]) -> tuple[ComposedWeights, tuple[Stage, ...]]:
    """The last of some states, composed of the first and the changes between, and a stage for each change."""
    layers = [MemoryLayer(diff(before, after)) for before, after in pairwise(states)]
    names = [f"s{number}" for number in range(len(layers))]
    index = made_index(dict(zip(names, [None, *names], strict=False)))
    return ComposedWeights(open_weights(states[0]), layers), index.stages


@st.composite
def lines(draw: st.DrawFn) -> list[Tensors]:
    """Draw a tensor at the base and some stages, which often go back to an earlier one's bits, or resize it."""
    rng = random.Random(draw(st.integers(0, 2**32)))
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.sampled_from([(), (0,), (7,), (4, 3)]))
    states = [{NAME: random_tensor(dtype, shape, rng), "anchor": torch.zeros(1)}]
    for _ in range(draw(st.integers(0, 5))):
        before = states[-1][NAME]
        after = tuned(before, draw(st.sampled_from([0.0, 0.3, 1.0])), rng)
        if draw(st.booleans()):
            earlier = rng.choice(states)[NAME]
            if earlier.shape == after.shape:
                mask = torch.tensor([rng.random() < 0.6 for _ in range(after.numel())], dtype=torch.bool)
                as_bits(after)[mask] = as_bits(earlier)[mask]
        if draw(st.integers(0, 9)) == 0:
            after = random_tensor(dtype, (5,), rng)
        states.append({**states[-1], NAME: after})
    return states


def counted(states: list[Tensors]) -> tuple[list[int], list[int], list[int]]:
    """Count coordinate by coordinate, as anyone would."""
    tensors = [state[NAME] for state in states]
    born = max([0, *(n for n in range(1, len(tensors)) if tensors[n].shape != tensors[n - 1].shape)])
    history = [as_bits(tensor).tolist() for tensor in tensors[born:]]
    last, changes, returns = [], [], []
    for column in zip(*history, strict=True):
        last.append(born - 1), changes.append(int(born > 0)), returns.append(0)
        for place in range(1, len(column)):
            if column[place] != column[place - 1]:
                last[-1] = born - 1 + place
                changes[-1] += 1
                returns[-1] += column[place] in column[:place]
    return last, changes, returns


@given(lines())
def test_blame_is_the_plain_count(states: list[Tensors]) -> None:
    weights, stages = composed(states)
    found = blame(weights, stages, NAME)
    shape = states[-1][NAME].shape
    assert found.last.shape == found.changes.shape == found.returns.shape == shape
    last, changes, returns = counted(states)
    assert found.last.flatten().tolist() == last
    assert found.changes.flatten().tolist() == changes
    assert found.returns.flatten().tolist() == returns
    summary = summarise(weights, stages)
    assert summary.tensors[NAME] == found.total()
    assert (summary.total.changes, summary.total.returns) == (sum(changes), sum(returns))
    assert sum(summary.total.last) == summary.total.numel
    assert summary.layers[3] == summary.kinds["mlp"] == found.total()


@given(lines(), st.randoms(use_true_random=False))
def test_a_biography_is_what_the_stages_hold(states: list[Tensors], rng: random.Random) -> None:
    weights, stages = composed(states)
    numel = states[-1][NAME].numel()
    if not numel:
        return
    flat = rng.randrange(numel)
    at = [int(i) for i in torch.unravel_index(torch.tensor(flat), states[-1][NAME].shape)]
    moments = biography(weights, stages, NAME, at)
    assert moments[-1].stage == (stages[-1] if stages else None)
    for moment, state in zip(reversed(moments), reversed(states), strict=False):
        assert same_bits(moment.value, state[NAME].flatten()[flat])
    found = blame(weights, stages, NAME)
    assert sum(moment.changed for moment in moments) == found.changes.flatten()[flat]
    assert sum(moment.returned for moment in moments) == found.returns.flatten()[flat]


def test_the_most_changed_come_first() -> None:
    states = [{"w": torch.tensor([[0.0, 0.0], [0.0, 0.0]]), "v": torch.zeros(4)} for _ in range(4)]
    states[1]["w"][1, 0] = 1.0
    states[3]["w"][0, 1] = 2.0
    weights, stages = composed(states)
    found = blame(weights, stages, "w")
    assert found.top(3) == [
        {"at": [1, 0], "changes": 2, "returns": 1, "last": "s1"},
        {"at": [0, 1], "changes": 1, "returns": 0, "last": "s2"},
    ]
    summary = summarise(weights, stages)
    assert summary.top(5) == ["w"]
    assert summary.to_dict()["tensors"]["w"]["last"] == {"base": 2, "s0": 0, "s1": 1, "s2": 1}


@pytest.mark.parametrize("at", [(), (0,), (2, 0), (0, -1), (0, 0, 0)])
def test_a_coordinate_outside_is_named(at: tuple[int, ...]) -> None:
    weights, stages = composed([{"w": torch.zeros(2, 2)}])
    with pytest.raises(CoordinateError, match="'w'"):
        biography(weights, stages, "w", at)
    with pytest.raises(UnknownNameError):
        blame(weights, stages, "v")
