from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from rlforget_kernels.patch import patch_
from rlforget_kernels.sparse_delta import reference
from tests.gpu.placement import on_device
from tests.kernels.strategies import pairs, same_bits

pytestmark = pytest.mark.gpu


@given(pairs())
@settings(max_examples=200)
def test_patch_turns_before_into_after_or_writes_nothing(pair: tuple[Tensor, Tensor]):
    before, after = pair
    patch = [part.cuda() for part in reference.sparse_delta(before, after)]
    weight = on_device(before)
    assert patch_(weight, *patch) == 0
    assert same_bits(weight.cpu(), after)
    if len(patch[0]):
        assert patch_(weight, *patch) == len(patch[0])
        assert same_bits(weight.cpu(), after)


def test_more_than_two_to_the_31_coordinates():
    numel = 2**31 + 4099
    weight = torch.zeros(numel, dtype=torch.int8, device="cuda")
    indices = torch.tensor([7, 2**31 + 5, numel - 1], device="cuda")
    old = torch.zeros(3, dtype=torch.int8, device="cuda")
    assert patch_(weight, torch.tensor([7, 2**31 + 5, numel], device="cuda"), old, old + 1) == 1
    assert not weight.any()
    assert patch_(weight, indices, old, old + 1) == 0
    assert torch.equal(weight.nonzero().squeeze(1), indices)
