from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlforget_kernels.patch import foreach_patch_, patch_
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


@given(st.lists(pairs(), min_size=1, max_size=6), st.data())
@settings(max_examples=100)
def test_one_mismatch_anywhere_and_nothing_is_written(listed: list[tuple[Tensor, Tensor]], data: st.DataObject):
    befores, afters = zip(*listed, strict=True)
    patches = [[part.cuda() for part in reference.sparse_delta(*pair)] for pair in listed]
    weights = list(map(on_device, befores))
    wrong = data.draw(st.integers(0, len(listed) - 1))
    if len(patches[wrong][0]):
        patches[wrong][1][-1] ^= 1
        mismatches = foreach_patch_(weights, *map(list, zip(*patches, strict=True)))
        assert mismatches.tolist() == [int(k == wrong) for k in range(len(listed))]
        assert all(same_bits(weight.cpu(), before) for weight, before in zip(weights, befores, strict=True))
        patches[wrong][1][-1] ^= 1
    assert not foreach_patch_(weights, *map(list, zip(*patches, strict=True))).any()
    assert all(same_bits(weight.cpu(), after) for weight, after in zip(weights, afters, strict=True))


def test_more_than_two_to_the_31_coordinates():
    numel = 2**31 + 4099
    weight = torch.zeros(numel, dtype=torch.int8, device="cuda")
    indices = torch.tensor([7, 2**31 + 5, numel - 1], device="cuda")
    old = torch.zeros(3, dtype=torch.int8, device="cuda")
    assert patch_(weight, torch.tensor([7, 2**31 + 5, numel], device="cuda"), old, old + 1) == 1
    assert not weight.any()
    assert patch_(weight, indices, old, old + 1) == 0
    assert torch.equal(weight.nonzero().squeeze(1), indices)
