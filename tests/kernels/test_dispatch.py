"""What torch expects of an operator: schema, versions of what is written, gradients, tracing."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from rlforget_kernels.common.bits import as_bits
from rlforget_kernels.fisher_accumulate import fisher_accumulate_
from rlforget_kernels.patch import foreach_patch_, patch_
from rlforget_kernels.project import project
from rlforget_kernels.sparse_delta import foreach_sparse_delta, sparse_delta
from rlforget_kernels.subtract import subtract_


@pytest.fixture
def weight() -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.arange(1.0, 9.0))


def changed(weight: Tensor, *places: int) -> Tensor:
    after = weight.detach().clone()
    after[list(places)] += 1
    return after


def patch_of(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    with torch.no_grad():
        return sparse_delta(before, after)


def test_a_write_raises_the_version(weight: torch.nn.Parameter):
    delta = patch_of(weight, changed(weight, 1, 3))
    version = weight._version
    patch_(weight, *delta)
    assert weight._version > version


def test_a_write_raises_the_version_of_every_tensor_of_a_list(weight: torch.nn.Parameter):
    weights = [torch.zeros(4), weight]
    versions = [tensor._version for tensor in weights]
    deltas = [patch_of(tensor, changed(tensor, 2)) for tensor in weights]
    foreach_patch_(weights, *(list(column) for column in zip(*deltas, strict=True)))
    assert all(tensor._version > version for tensor, version in zip(weights, versions, strict=True))


def test_a_write_by_keyword_raises_the_version():
    fisher = torch.zeros(4)
    version = fisher._version
    fisher_accumulate_(gradient=torch.ones(4), fisher=fisher)
    assert fisher._version > version


def test_inputs_keep_their_version(weight: torch.nn.Parameter):
    after = changed(weight, 0)
    versions = weight._version, after._version
    sparse_delta(weight, after)
    assert (weight._version, after._version) == versions


def test_backward_fails_where_a_saved_tensor_was_written(weight: torch.nn.Parameter):
    loss = (weight * weight).sum()
    patch_(weight, *patch_of(weight, changed(weight, 5)))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_backward_through_an_operator_fails():
    """And does not leave the gradient out, which would train on without a word."""
    before, after = torch.nn.Parameter(torch.ones(4, 4)), torch.zeros(4, 4)
    cores, _ = project([before], [after], [torch.ones(4, 1)], [torch.ones(4, 1)])
    assert cores[0].requires_grad
    with pytest.raises(RuntimeError, match=r"torch\.no_grad"):
        cores[0].sum().backward()


def test_without_gradients_outputs_require_none():
    before, after = torch.nn.Parameter(torch.ones(4, 4)), torch.zeros(4, 4)
    with torch.no_grad():
        cores, energy = project([before], [after], [torch.ones(4, 1)], [torch.ones(4, 1)])
    assert not cores[0].requires_grad
    assert not energy.requires_grad


@pytest.mark.parametrize("enabled", [False, True])
def test_parameters_are_compared_and_written_in_any_mode(weight: torch.nn.Parameter, enabled: bool):
    after = changed(weight, 1, 6)
    with torch.set_grad_enabled(enabled):
        (indices,), (before_bits,), (after_bits,) = foreach_sparse_delta([weight], [after])
        assert indices.tolist() == [1, 6]
        assert int(patch_(weight, indices, before_bits, after_bits)) == 0
    assert weight.requires_grad
    assert weight.is_leaf
    assert torch.equal(as_bits(weight), as_bits(after))


def test_inference_mode():
    with torch.inference_mode():
        weight = torch.zeros(8)
        after = changed(weight, 7)
        assert int(patch_(weight, *sparse_delta(weight, after))) == 0
        assert torch.equal(weight, after)


def test_a_write_under_torch_compile():
    """The compiler turns writes into copies and back: what it returns and what it leaves behind are those of a call."""

    def step(weight: Tensor, change: Tensor) -> Tensor:
        subtract_(weight, change)
        return weight * 2

    weight, change = torch.ones(8), torch.full((8,), 0.25)
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(weight, change), torch.full((8,), 1.5))
    assert torch.equal(weight, torch.full((8,), 0.75))


def test_sizes_that_depend_on_the_data_under_torch_compile():
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(
            lambda before, after: sparse_delta(before, after)[0] + 1, backend="aot_eager", fullgraph=True
        )
        before = torch.zeros(8)
        assert compiled(before, changed(before, 2, 5)).tolist() == [3, 6]


def test_operators_need_no_compiler():
    """`torch._dynamo` takes a second to import."""
    code = """
import sys, torch
from rlforget_kernels.patch import patch_
from rlforget_kernels.project import project
from rlforget_kernels.sparse_delta import sparse_delta
weight = torch.nn.Parameter(torch.zeros(4, 4))
patch_(weight, *sparse_delta(weight, torch.eye(4)))
project([weight], [torch.eye(4)], [torch.ones(4, 1)], [torch.ones(4, 1)])
assert "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
