"""Coordinates: checked when made, and found again in their delta."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rlforget.delta import diff
from rlforget.errors import CoordinateError
from rlforget.interference import Coordinates


def made(numel: int, changed: list[int]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    before = {"w": torch.zeros(numel), "other": torch.zeros(2)}
    after = {name: value.clone() for name, value in before.items()}
    after["w"][changed] = 1.0
    return before, after


@given(st.data(), st.integers(1, 60))
def test_positions_lead_back_to_the_coordinates(data: st.DataObject, numel: int) -> None:
    changed = data.draw(st.lists(st.integers(0, numel - 1), unique=True).map(sorted))
    chosen = data.draw(st.lists(st.sampled_from(changed), unique=True).map(sorted)) if changed else []
    delta = diff(*made(numel, changed))
    coordinates = Coordinates({"w": torch.tensor(chosen, dtype=torch.int64)})
    positions = coordinates.positions(delta)["w"]
    assert torch.equal(delta["w"].indices[positions].long(), coordinates["w"])
    assert coordinates.count == len(chosen)
    stray = sorted(set(range(numel)) - set(changed))
    if stray:
        with pytest.raises(CoordinateError, match=f"coordinate {stray[-1]} of 'w'"):
            Coordinates({"w": torch.tensor([stray[-1]])}).positions(delta)


def test_of_is_all_that_changed() -> None:
    delta = diff(*made(9, [1, 4, 8]))
    everything = Coordinates.of(delta)
    assert list(everything) == ["w"]
    assert everything["w"].tolist() == [1, 4, 8]
    assert len(everything) == 1
    assert repr(everything) == "Coordinates(3 in 1 tensors)"


def test_a_tensor_that_the_delta_does_not_hold() -> None:
    with pytest.raises(CoordinateError, match="does not hold"):
        Coordinates({"v": torch.tensor([0])}).positions(diff(*made(3, [0])))


@pytest.mark.parametrize(
    "indices", [torch.tensor([2, 1]), torch.tensor([1, 1]), torch.tensor([-1, 0]), torch.tensor([[0]]), torch.ones(1)]
)
def test_what_is_refused(indices: Tensor) -> None:
    with pytest.raises(CoordinateError, match="ascending"):
        Coordinates({"w": indices})
