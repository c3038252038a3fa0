from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from rlforget_kernels.common.bits import as_bits
from rlforget_kernels.common.launch import launch
from rlforget_kernels.patch import cpu, foreach_patch_, gpu, patch_, reference
from rlforget_kernels.sparse_delta import reference as sparse_delta
from tests.kernels.strategies import OPCHECK_DTYPES, laid_out, pairs, random_tensor, same_bits

BACKENDS = (reference, cpu, gpu)


def patched(backend: ModuleType, weight: Tensor, *patch: Tensor) -> tuple[int, Tensor]:
    """The mismatches, and the weight after patching a copy with the same strides."""
    mismatches, (weight,) = all_patched(backend, [weight], [patch])
    return mismatches[0], weight


def all_patched(
    backend: ModuleType, weights: list[Tensor], patches: Sequence[Sequence[Tensor]]
) -> tuple[list[int], list[Tensor]]:
    """The mismatches, and the weights after patching copies with the same strides."""
    weights = [weight.clone() if weight.is_contiguous() else laid_out(weight, "strided") for weight in weights]
    mismatches = backend.foreach_patch_(weights, *([patch[k] for patch in patches] for k in range(3)))
    assert mismatches.dtype == torch.int64
    assert mismatches.shape == (len(weights),)
    return mismatches.tolist(), weights


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


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.__name__.rsplit(".")[-1])
@given(listed=st.lists(pairs(), min_size=1, max_size=5), data=st.data())
@settings(max_examples=40)
def test_one_mismatch_anywhere_and_nothing_is_written(
    backend: ModuleType, listed: list[tuple[Tensor, Tensor]], data: st.DataObject
):
    befores, afters = map(list, zip(*listed, strict=True))
    patches = [sparse_delta.sparse_delta(before, after) for before, after in listed]
    mismatches, weights = all_patched(backend, befores, patches)
    assert mismatches == [0] * len(listed)
    assert all(map(same_bits, weights, afters))
    wrong = data.draw(st.integers(0, len(listed) - 1))
    if len(patches[wrong][0]):
        patches[wrong][1][-1] ^= 1
        mismatches, weights = all_patched(backend, befores, patches)
        assert mismatches == [int(k == wrong) for k in range(len(listed))]
        assert all(map(same_bits, weights, befores))


def test_tensors_of_a_kind_share_their_launches(monkeypatch: pytest.MonkeyPatch):
    launched = []

    def counted(kernel: Any, *args: Any, **constants: Any) -> None:
        launched.append(kernel)
        launch(kernel, *args, **constants)

    monkeypatch.setattr(gpu, "launch", counted)
    befores = [random_tensor(torch.int16, (40,), k) for k in range(100)]
    patches = [sparse_delta.sparse_delta(before, before + 1) for before in befores]
    mismatches, weights = all_patched(gpu, befores, patches)
    assert not any(mismatches)
    assert all(torch.equal(weight, before + 1) for weight, before in zip(weights, befores, strict=True))
    assert launched == [gpu.mismatch_kernel, gpu.write_kernel]


def test_threads_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("rlforget_kernels.common.threads.GRAIN", 1000)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    before, after = random_tensor(torch.int16, (20_000,), 0), random_tensor(torch.int16, (20_000,), 1)
    indices, old, new = sparse_delta.sparse_delta(before, after)
    assert patched(cpu, after, indices, old, new)[0] == len(indices)
    mismatches, weight = patched(cpu, before, indices, old, new)
    assert mismatches == 0
    assert same_bits(weight, after)


@pytest.mark.parametrize("numel", [20_000, 2_000_000], ids=["dense", "sparse"])
@pytest.mark.parametrize("place", [0, 255, 256, 9_999, 19_999])
def test_what_was_written_before_a_mismatch_is_put_back(numel: int, place: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("rlforget_kernels.common.threads.GRAIN", 1000)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    before = random_tensor(torch.int16, (numel,), 0)
    indices = torch.arange(0, numel, numel // 20_000, dtype=torch.int32)
    old = before[indices.long()]
    new = old + 1
    old[place] ^= 4
    mismatches, weight = patched(cpu, before, indices, old, new)
    assert mismatches == 1
    assert same_bits(weight, before)
    old[place] ^= 4
    mismatches, weight = patched(cpu, before, indices, old, new)
    assert mismatches == 0
    assert torch.equal(weight[indices.long()], new)


def test_an_index_twice_is_written_once():
    before = random_tensor(torch.int16, (5000,), 0)
    indices = torch.cat([torch.arange(1000), torch.arange(999, 2000)])
    old = before[indices]
    mismatches, weight = patched(cpu, before, indices, old, old + 1)
    assert mismatches == 0
    assert torch.equal(weight[:2000], before[:2000] + 1)
    assert torch.equal(weight[2000:], before[2000:])
    old[-1] ^= 1
    mismatches, weight = patched(cpu, before, indices, old, old + 1)
    assert mismatches == 1
    assert same_bits(weight, before)


@pytest.mark.parametrize("dtype", OPCHECK_DTYPES, ids=str)
def test_opcheck(dtype: torch.dtype):
    before, after = random_tensor(dtype, (40, 5), 1), random_tensor(dtype, (40, 5), 2)
    patch = sparse_delta.sparse_delta(before, after)
    torch.library.opcheck(torch.ops.rlforget.patch_.default, (before, *patch))
    lists = [[tensor.clone(), tensor.clone()] for tensor in (before, *patch)]
    torch.library.opcheck(torch.ops.rlforget.foreach_patch_.default, tuple(lists))


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
    with FakeTensorMode() as mode, pytest.raises(error):
        patch_(*map(mode.from_tensor, (weight, indices, old, new)))
    good = [torch.zeros(1, dtype=dtype) for dtype in (LONG, INT, INT)]
    with pytest.raises(error):
        foreach_patch_([torch.zeros(4), weight], *map(list, zip(good, (indices, old, new), strict=True)))
    assert weight.tolist() == [0.0] * 4


def test_lists():
    assert foreach_patch_([], [], [], []).tolist() == []
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        foreach_patch_([torch.zeros(4)], [], [], [])
    with FakeTensorMode() as mode, pytest.raises(ValueError, match=r"\[0, 1\]"):
        foreach_patch_([mode.from_tensor(torch.zeros(4))], [], [], [])
