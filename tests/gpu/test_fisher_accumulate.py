from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlforget_kernels.fisher_accumulate import fisher_accumulate_, foreach_fisher_accumulate_, reference
from tests.gpu.placement import on_device
from tests.kernels.strategies import FLOATS, LAYOUTS, generator, laid_out, random_tensor, same_bits, seeds, tensors

pytestmark = pytest.mark.gpu


@given(gradient=tensors(st.sampled_from(FLOATS)), layout=st.sampled_from(LAYOUTS), seed=seeds, gathered=st.booleans())
@settings(max_examples=200)
def test_equals_reference(gradient: Tensor, layout: str, seed: int, gathered: bool):
    indices, shape = None, tuple(gradient.shape)
    if gathered:
        indices = (torch.rand(gradient.numel(), generator=generator(seed)) < 0.3).nonzero()[:, 0]
        shape = tuple(indices.shape)
    fisher = laid_out(random_tensor(torch.float32, shape, seed), layout)
    found = on_device(fisher)
    fisher_accumulate_(found, on_device(gradient), None if indices is None else indices.cuda())
    reference.fisher_accumulate_(fisher, gradient, indices)
    assert same_bits(found.cpu(), fisher)


def test_many_fishers_at_once():
    gradients = [random_tensor(dtype, (17 * k, 33), k) for k, dtype in enumerate(FLOATS * 20)]
    fishers = [random_tensor(torch.float32, tuple(gradient.shape), k) for k, gradient in enumerate(gradients)]
    found = [on_device(fisher) for fisher in fishers]
    foreach_fisher_accumulate_(found, [on_device(gradient) for gradient in gradients], [])
    foreach_fisher_accumulate_(fishers, gradients, [])
    assert all(same_bits(ours.cpu(), theirs) for ours, theirs in zip(found, fishers, strict=True))


@pytest.mark.parametrize("index", [-1, 5])
def test_index_out_of_range(index: int):
    fisher = torch.zeros(1, device="cuda")
    with pytest.raises(IndexError, match=str(index)):
        fisher_accumulate_(fisher, torch.ones(5, device="cuda"), torch.tensor([index], device="cuda"))
    assert fisher.item() == 0


def test_more_than_two_to_the_31_coordinates():
    gradient = torch.ones(2**31 + 4099, dtype=torch.bfloat16, device="cuda")
    fisher = torch.zeros(gradient.shape, device="cuda")
    fisher_accumulate_(fisher, gradient)
    assert (fisher == 1).all()
    indices = torch.tensor([0, 2**31 + 5, gradient.numel() - 1], device="cuda")
    few = torch.zeros(3, device="cuda")
    gradient[2**31 + 5] = 3
    fisher_accumulate_(few, gradient, indices)
    assert few.tolist() == [1.0, 9.0, 1.0]
