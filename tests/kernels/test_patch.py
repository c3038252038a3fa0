from __future__ import annotations

from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlforget_kernels.common.bits import as_bits
from rlforget_kernels.patch import cpu, gpu, patch_, reference
from rlforget_kernels.sparse_delta import reference as sparse_delta
from tests.kernels.strategies import OPCHECK_DTYPES, laid_out, pairs, random_tensor, same_bits

BACKENDS = (reference, cpu, gpu)


def patched(backend: ModuleType, weight: Tensor, *patch: Tensor) -> tuple[int, Tensor]:
    """The mismatches, and the weight after patching a copy with the same strides."""
    weight = weight.clone() if weight.is_contiguous() else laid_out(weight, "strided")
    mismatches = backend.patch_(weight, *patch)
    assert mismatches.dtype == torch.int64
    assert mismatches.shape == ()
    return int(mismatches), weight


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.__name__.rsplit(".")[-1])
@given(pair=pairs(), index_dtype=st.sampled_from([torch.int32, torch.int64]))
@settings(max_examples=60)
def test_patch_turns_before_into_after(backend: ModuleType, pair: tuple[Tensor, Tensor], index_dtype: torch.dtype):
    before, after = pair
    indices, old, new = sparse_delta.sparse_delta(before, after)
    indices = indices.to(index_dtype)
    mismatches, weight = patched(backend, before, indices, old, new)
    assert mismatches == 0
    assert same_bits(weight, after)
    mismatches, weight = patched(backend, after, indices, new, old)
    assert mismatches == 0
    assert same_bits(weight, before)


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.__name__.rsplit(".")[-1])
@given(pair=pairs(), data=st.data())
@settings(max_examples=60)
def test_one_wrong_bit_or_index_and_nothing_is_written(
    backend: ModuleType, pair: tuple[Tensor, Tensor], data: st.DataObject
):
    before, after = pair
    indices, old, new = (part.clone() for part in sparse_delta.sparse_delta(before, after))
    if not len(indices):
        return
    indices = indices.to(data.draw(st.sampled_from([torch.int32, torch.int64])))
    wrong = data.draw(st.sets(st.integers(0, len(indices) - 1), min_size=1, max_size=3))
    for position in wrong:
        place = data.draw(st.sampled_from(["bits", "past the end", "far past the end", "negative"]))
        if place == "bits":
            old[position] ^= 1
        else:
            far = torch.iinfo(indices.dtype).max
            indices[position] = {"past the end": before.numel(), "far past the end": far, "negative": -1}[place]
    mismatches, weight = patched(backend, before, indices, old, new)
    assert mismatches == len(wrong)
    assert same_bits(weight, before)


def test_threads_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("rlforget_kernels.common.threads.GRAIN", 1000)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    before, after = random_tensor(torch.int16, (20_000,), 0), random_tensor(torch.int16, (20_000,), 1)
    indices, old, new = sparse_delta.sparse_delta(before, after)
    assert patched(cpu, after, indices, old, new)[0] == len(indices)
    mismatches, weight = patched(cpu, before, indices, old, new)
    assert mismatches == 0
    assert same_bits(weight, after)


@pytest.mark.parametrize("dtype", OPCHECK_DTYPES, ids=str)
def test_opcheck(dtype: torch.dtype):
    before, after = random_tensor(dtype, (40, 5), 1), random_tensor(dtype, (40, 5), 2)
    torch.library.opcheck(torch.ops.rlforget.patch_.default, (before, *sparse_delta.sparse_delta(before, after)))


def test_a_live_parameter_is_patched_in_place():
    parameter = torch.nn.Parameter(torch.ones(3))
    address = parameter.data_ptr()
    with torch.no_grad():
        two = torch.tensor([2.0]).view(torch.int32)
        mismatches = patch_(parameter, torch.tensor([1]), as_bits(parameter)[1:2].clone(), two)
    assert mismatches == 0
    assert parameter.tolist() == [1.0, 2.0, 1.0]
    assert parameter.data_ptr() == address


LONG, INT, BYTE, SHORT = torch.int64, torch.int32, torch.int8, torch.int16


@pytest.mark.parametrize(
    ("indices", "old", "new", "error"),
    [
        (torch.zeros(1, dtype=SHORT), torch.zeros(1, dtype=INT), torch.zeros(1, dtype=INT), TypeError),
        (torch.zeros(1, dtype=LONG), torch.zeros(1), torch.zeros(1, dtype=INT), TypeError),
        (torch.zeros(1, dtype=LONG), torch.zeros(1, dtype=INT), torch.zeros(1, dtype=BYTE), TypeError),
        (torch.zeros(2, dtype=LONG), torch.zeros(1, dtype=INT), torch.zeros(1, dtype=INT), ValueError),
        (torch.zeros(1, 1, dtype=LONG), torch.zeros(1, 1, dtype=INT), torch.zeros(1, 1, dtype=INT), ValueError),
    ],
)
def test_bad_input(indices: Tensor, old: Tensor, new: Tensor, error: type[Exception]):
    weight = torch.zeros(4)
    with pytest.raises(error):
        patch_(weight, indices, old, new)
    assert weight.tolist() == [0.0] * 4
