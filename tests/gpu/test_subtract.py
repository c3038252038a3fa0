from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlforget_kernels.subtract import foreach_subtract_, reference, subtract_
from tests.gpu.placement import on_device
from tests.kernels.strategies import FLOATS, LAYOUTS, laid_out, random_tensor, same_bits, seeds, tensors

pytestmark = pytest.mark.gpu


@given(
    weight=tensors(st.sampled_from(FLOATS)),
    layout=st.sampled_from(LAYOUTS),
    u_seed=seeds,
    scale=st.sampled_from([1.0, 2.0**-10]),
    seed=st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)),
    offset=st.sampled_from([0, 1, 2**40]),
)
@settings(max_examples=300)
def test_equals_reference(weight: Tensor, layout: str, u_seed: int, scale: float, seed: int | None, offset: int):
    u = laid_out(random_tensor(torch.float32, tuple(weight.shape), u_seed) * scale, layout)
    found = on_device(weight)
    subtract_(found, on_device(u), seed, offset)
    reference.subtract_(weight, u, seed, offset)
    assert same_bits(found.cpu(), weight)


def test_many_weights_at_once():
    weights = [random_tensor(dtype, (17 * k, 33), k) for k, dtype in enumerate(FLOATS * 20)]
    us = [random_tensor(torch.float32, tuple(weight.shape), k) for k, weight in enumerate(weights)]
    found = [on_device(weight) for weight in weights]
    foreach_subtract_(found, [on_device(u) for u in us], 5)
    foreach_subtract_(weights, us, 5)
    assert all(same_bits(ours.cpu(), theirs) for ours, theirs in zip(found, weights, strict=True))


def test_millions_of_draws_equal_those_of_the_cpu():
    weight = random_tensor(torch.bfloat16, (5_000_011,), 0)
    u = torch.full(weight.shape, 1e-4)
    found = weight.cuda()
    subtract_(found, u.cuda(), seed=5)
    subtract_(weight, u, seed=5)
    assert same_bits(found.cpu(), weight)
