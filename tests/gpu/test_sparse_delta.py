from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlforget_kernels.sparse_delta import foreach_sparse_delta, reference, sparse_delta
from tests.gpu.placement import on_device
from tests.kernels.strategies import OPCHECK_DTYPES, changed_copy, pairs, random_tensor, same_bits

pytestmark = pytest.mark.gpu


@given(st.lists(pairs(), min_size=1, max_size=6))
@settings(max_examples=200)
def test_equals_reference(listed: list[tuple[Tensor, Tensor]]):
    found = foreach_sparse_delta(*(list(map(on_device, side)) for side in zip(*listed, strict=True)))
    for pair, *columns in zip(listed, *found, strict=True):
        truth = reference.sparse_delta(*pair)
        assert all(same_bits(part.cpu(), expected) for part, expected in zip(columns, truth, strict=True))


@pytest.mark.parametrize("density", [0.0, 0.001, 0.5, 1.0])
def test_millions_of_coordinates_equal_reference_and_repeat(density: float):
    before = random_tensor(torch.bfloat16, (5_000_011,), 0)
    after = changed_copy(before, density, 1)
    truth = reference.sparse_delta(before, after)
    for _ in range(3):
        found = sparse_delta(before.cuda(), after.cuda())
        assert all(same_bits(part.cpu(), expected) for part, expected in zip(found, truth, strict=True))


def test_more_than_two_to_the_31_coordinates():
    numel = 2**31 + 4099
    before = torch.zeros(numel, dtype=torch.int8, device="cuda")
    after = before.clone()
    changed = torch.tensor([0, 5, 2**31 - 1, 2**31, 2**31 + 1, numel - 1], device="cuda")
    after[changed] = 3
    indices, old, new = sparse_delta(before, after)
    assert indices.dtype == torch.int64
    assert torch.equal(indices, changed)
    assert old.tolist() == [0] * 6
    assert new.tolist() == [3] * 6


@pytest.mark.parametrize("dtype", OPCHECK_DTYPES, ids=str)
def test_opcheck(dtype: torch.dtype):
    before, after = (random_tensor(dtype, (40, 5), seed).cuda() for seed in (1, 2))
    torch.library.opcheck(torch.ops.rlforget.sparse_delta.default, (before, after))
