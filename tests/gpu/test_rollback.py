from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlforget_kernels.rollback import foreach_rollback_, reference, rollback_
from tests.gpu.placement import on_device
from tests.kernels.strategies import DTYPES, FLOATS, LAYOUTS, laid_out, same_bits, seeds
from tests.kernels.test_rollback import cases, shared_cases

pytestmark = pytest.mark.gpu


def check(
    case: tuple[Any, ...],
    layout: str,
    strength: float,
    seed: int | None = None,
    offset: int = 0,
    by_share: bool = False,
) -> None:
    weight, *tensors, threshold = case
    weight = laid_out(weight, layout)
    found = on_device(weight)
    given = [None if tensor is None else on_device(tensor) for tensor in tensors]
    rollback_(found, *given, threshold, strength, seed, offset, by_share)
    reference.rollback_(weight, *tensors, threshold, strength, seed, offset, by_share)
    assert same_bits(found.cpu(), weight)


@given(cases(st.sampled_from(DTYPES)), st.sampled_from(LAYOUTS))
@settings(max_examples=200)
def test_whole(case: tuple[Any, ...], layout: str):
    check(case, layout, 1.0)


@given(
    cases(st.sampled_from(FLOATS)),
    st.sampled_from(LAYOUTS),
    st.floats(-0.5, 1.5),
    st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)),
    st.sampled_from([0, 1, 2**40]),
)
@settings(max_examples=200)
def test_part_of_the_way(case: tuple[Any, ...], layout: str, strength: float, seed: int | None, offset: int):
    check(case, layout, strength, seed, offset)


@given(shared_cases(), st.sampled_from(LAYOUTS), st.sampled_from([1.0, 0.3]), st.one_of(st.none(), seeds))
@settings(max_examples=200)
def test_by_share(case: tuple[Any, ...], layout: str, strength: float, seed: int | None):
    check(case, layout, strength, seed, 3, True)


@given(st.lists(cases(st.sampled_from(FLOATS)), max_size=5), st.sampled_from([0.3, 1.0]))
@settings(max_examples=100)
def test_many_weights_at_once(listed: list[tuple[Any, ...]], strength: float):
    columns = [[case[k] for case in listed] for k in range(4)]
    found, *given = ([None if one is None else on_device(one) for one in column] for column in columns)
    foreach_rollback_(found, *given, 0.1, strength, 5)
    offset = 0
    for weight, ours, (_, *tensors, _) in zip(columns[0], found, listed, strict=True):
        reference.rollback_(weight, *tensors, 0.1, strength, 5, offset)
        assert same_bits(ours.cpu(), weight)
        offset += weight.numel()


def test_more_than_two_to_the_31_coordinates():
    weight = torch.zeros(2**31 + 4099, dtype=torch.int8, device="cuda")
    indices = torch.tensor([3, 2**31 + 5, weight.numel() - 1], device="cuda")
    rollback_(weight, torch.ones(3, dtype=torch.int8, device="cuda"), indices)
    assert torch.equal(weight.nonzero()[:, 0], indices)
    rollback_(weight, torch.full_like(weight, 2))
    assert (weight == 2).all()
