from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlforget_kernels.rollback import reference, rollback_
from tests.gpu.placement import on_device
from tests.kernels.strategies import DTYPES, FLOATS, LAYOUTS, laid_out, same_bits
from tests.kernels.test_rollback import cases

pytestmark = pytest.mark.gpu


def check(case: tuple[Any, ...], layout: str, strength: float) -> None:
    weight, *tensors, threshold = case
    weight = laid_out(weight, layout)
    found = on_device(weight)
    rollback_(found, *(None if t is None else on_device(t) for t in tensors), threshold, strength)
    reference.rollback_(weight, *tensors, threshold, strength)
    assert same_bits(found.cpu(), weight)


@given(cases(st.sampled_from(DTYPES)), st.sampled_from(LAYOUTS))
@settings(max_examples=200)
def test_whole(case: tuple[Any, ...], layout: str):
    check(case, layout, 1.0)


@given(cases(st.sampled_from(FLOATS)), st.sampled_from(LAYOUTS), st.floats(-0.5, 1.5))
@settings(max_examples=200)
def test_part_of_the_way(case: tuple[Any, ...], layout: str, strength: float):
    check(case, layout, strength)


def test_more_than_two_to_the_31_coordinates():
    weight = torch.zeros(2**31 + 4099, dtype=torch.int8, device="cuda")
    indices = torch.tensor([3, 2**31 + 5, weight.numel() - 1], device="cuda")
    rollback_(weight, torch.ones(3, dtype=torch.int8, device="cuda"), indices)
    assert torch.equal(weight.nonzero()[:, 0], indices)
    rollback_(weight, torch.full_like(weight, 2))
    assert (weight == 2).all()
