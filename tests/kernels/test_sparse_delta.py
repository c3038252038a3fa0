from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from rlforget_kernels.sparse_delta import cpu, gpu, reference, sparse_delta
from tests.kernels.strategies import OPCHECK_DTYPES, pairs, random_tensor, same_bits


def check(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    assert all(map(same_bits, found, expected))


def test_reference_on_a_case_worked_by_hand():
    before = torch.tensor([[0.0, 1.0, float("nan")], [2.0, -0.0, 3.0]])
    after = torch.tensor([[-0.0, 1.0, float("nan")], [2.0, -0.0, 3.5]])
    indices, old, new = reference.sparse_delta(before, after)
    assert indices.tolist() == [0, 5]
    assert indices.dtype == torch.int32
    assert old.view(torch.float32).tolist() == [0.0, 3.0]
    assert new.tolist() == [-(2**31), 0x40600000]


def test_nan_equals_only_the_nan_of_the_same_payload():
    before = torch.tensor([0x7FC0, 0x7FC0, 0x7F80], dtype=torch.int16).view(torch.bfloat16)
    after = torch.tensor([0x7FC0, 0x7FC1, 0x7F81], dtype=torch.int16).view(torch.bfloat16)
    for backend in (reference, cpu, gpu):
        assert backend.sparse_delta(before, after)[0].tolist() == [1, 2]


@given(pairs())
@settings(max_examples=100)
def test_cpu_equals_reference(pair: tuple[Tensor, Tensor]):
    check(cpu.sparse_delta(*pair), reference.sparse_delta(*pair))


@given(pairs())
def test_gpu_equals_reference(pair: tuple[Tensor, Tensor]):
    check(gpu.sparse_delta(*pair), reference.sparse_delta(*pair))


@given(pairs())
def test_writing_the_new_bits_gives_the_tensor_after(pair: tuple[Tensor, Tensor]):
    before, after = pair
    indices, old, new = sparse_delta(before, after)
    rebuilt = before.clone(memory_format=torch.contiguous_format)
    bits = rebuilt.view(new.dtype).view(-1)
    assert torch.equal(bits[indices], old)
    bits[indices] = new
    assert same_bits(rebuilt, after)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_do_not_change_the_result(threads: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("rlforget_kernels.common.threads.GRAIN", 1000)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    before = random_tensor(torch.bfloat16, (50_001,), 0)
    after = before.clone()
    after[::7] = 1.5
    after[-1] = 2.5
    check(cpu.sparse_delta(before, after), reference.sparse_delta(before, after))


@pytest.mark.parametrize("dtype", OPCHECK_DTYPES, ids=str)
def test_opcheck(dtype: torch.dtype):
    before, after = random_tensor(dtype, (40, 5), 1), random_tensor(dtype, (40, 5), 2)
    torch.library.opcheck(torch.ops.rlforget.sparse_delta.default, (before, after))


def test_results_do_not_alias_the_inputs():
    before, after = torch.zeros(4, dtype=torch.int8), torch.ones(4, dtype=torch.int8)
    _, old, new = sparse_delta(before, after)
    old.fill_(7)
    new.fill_(7)
    assert before.tolist() == [0] * 4
    assert after.tolist() == [1] * 4


@pytest.mark.parametrize(
    ("before", "after", "error"),
    [
        (torch.zeros(2), torch.zeros(3), ValueError),
        (torch.zeros(2), torch.zeros(2, 1), ValueError),
        (torch.zeros(2), torch.zeros(2, dtype=torch.float16), ValueError),
        (torch.zeros(2, dtype=torch.complex64), torch.zeros(2, dtype=torch.complex64), TypeError),
    ],
)
def test_bad_input(before: Tensor, after: Tensor, error: type[Exception]):
    with pytest.raises(error):
        sparse_delta(before, after)
