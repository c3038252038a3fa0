from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlforget_kernels.delta_stats import DeltaStats, delta_stats, foreach_delta_stats, reference
from tests.gpu.placement import on_device
from tests.kernels.strategies import OPCHECK_DTYPES, changed_copy, pairs, random_tensor, same_bits

pytestmark = pytest.mark.gpu


@given(st.lists(pairs(), min_size=1, max_size=6))
@settings(max_examples=200)
def test_equals_reference(listed: list[tuple[Tensor, Tensor]]):
    found = foreach_delta_stats(*(list(map(on_device, side)) for side in zip(*listed, strict=True)))
    for row, pair in enumerate(listed):
        for column, truth in zip(found, reference.delta_stats(*pair), strict=True):
            assert same_bits(column[row].cpu(), truth)


@pytest.mark.parametrize("density", [0.0, 0.001, 0.5, 1.0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn], ids=str)
def test_millions_of_coordinates_equal_the_cpu_and_repeat(density: float, dtype: torch.dtype):
    before = random_tensor(dtype, (5_000_011,), 0)
    after = changed_copy(before, density, 1)
    truth = delta_stats(before, after)
    for _ in range(3):
        found = delta_stats(before.cuda(), after.cuda())
        assert all(same_bits(part.cpu(), expected) for part, expected in zip(found, truth, strict=True))


def test_more_than_two_to_the_31_coordinates():
    before = torch.zeros(2**31 + 4099, dtype=torch.int8, device="cuda")
    stats = DeltaStats(*delta_stats(before, before + 1))
    assert stats.count("changed") == before.numel()
    assert stats.sums.tolist() == [before.numel(), before.numel(), 1.0]


@pytest.mark.parametrize("dtype", OPCHECK_DTYPES, ids=str)
def test_opcheck(dtype: torch.dtype):
    before, after = (random_tensor(dtype, (40, 5), seed).cuda() for seed in (1, 2))
    torch.library.opcheck(torch.ops.rlforget.delta_stats.default, (before, after))
