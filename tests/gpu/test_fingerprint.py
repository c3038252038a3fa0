from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlforget_kernels.fingerprint import fingerprint, foreach_fingerprint, reference
from tests.gpu.placement import on_device
from tests.kernels.strategies import random_tensor, tensors
from tests.kernels.test_fingerprint import of_one, offsets

pytestmark = pytest.mark.gpu


@given(tensors(), offsets)
@settings(max_examples=200)
def test_equals_reference(weight: Tensor, offset: int):
    assert torch.equal(fingerprint(on_device(weight), offset).cpu(), of_one(reference, weight, offset))


@given(st.lists(tensors(), max_size=8))
@settings(max_examples=50)
def test_list_equals_one_by_one(weights: list[Tensor]):
    found = foreach_fingerprint([on_device(weight) for weight in weights])
    for lanes, weight in zip(found.cpu(), weights, strict=True):
        assert torch.equal(lanes, of_one(reference, weight))


@pytest.mark.parametrize("dtype", [torch.float8_e5m2, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_millions_of_coordinates_equal_the_cpu(dtype: torch.dtype):
    weight = random_tensor(dtype, (5_000_011,), 0)
    assert torch.equal(fingerprint(weight.cuda()).cpu(), fingerprint(weight))


def test_more_than_two_to_the_31_coordinates():
    weight = torch.ones(2**31 + 4099, dtype=torch.int8, device="cuda")
    half = 2**30 + 77
    assert torch.equal(fingerprint(weight), fingerprint(weight[:half]) + fingerprint(weight[half:], half))
