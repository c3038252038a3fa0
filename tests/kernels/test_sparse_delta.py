from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from benchmarks.memory import peak_extra
from rlforget_kernels.common import scratch
from rlforget_kernels.common.compaction_cpu import compact_bits
from rlforget_kernels.common.launch import launch
from rlforget_kernels.sparse_delta import cpu, foreach_sparse_delta, gpu, reference, sparse_delta
from tests.kernels.strategies import OPCHECK_DTYPES, changed_copy, laid_out, pairs, random_tensor, same_bits

BACKENDS = pytest.mark.parametrize("backend", [cpu, gpu], ids=["cpu", "gpu"])
Pair = tuple[Tensor, Tensor]


@pytest.fixture
def portable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor without the instructions that pick elements out."""
    monkeypatch.setattr(cpu, "compaction", lambda: compact_bits)


@pytest.fixture
def little_scratch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scratch memory that overflows at some hundred changes."""
    monkeypatch.setattr(scratch, "SIZE", 4096)
    monkeypatch.setattr(scratch, "_free", [])


def check(backend: ModuleType, listed: list[Pair]) -> None:
    """The list form of a backend against the reference, pair by pair."""
    found = backend.foreach_sparse_delta([old for old, _ in listed], [new for _, new in listed])
    assert [len(column) for column in found] == [len(listed)] * 3
    for pair, *columns in zip(listed, *found, strict=True):
        assert all(map(same_bits, columns, reference.sparse_delta(*pair)))


def many_pairs() -> list[Pair]:
    """Tensors of several launch groups, with none that is empty alone in its group."""
    kinds = [
        (torch.bfloat16, 5000),
        (torch.float32, 3),
        (torch.int8, 20_000),
        (torch.bfloat16, 0),
        (torch.float64, 4097),
    ]
    befores = [random_tensor(dtype, (numel,), seed) for seed, (dtype, numel) in enumerate(kinds * 3)]
    layouts = ["contiguous", "unaligned", "strided"]
    return [
        (laid_out(before, layouts[k % 3]), laid_out(changed_copy(before, [0.0, 0.02, 0.5][k // 5], k), layouts[k // 5]))
        for k, before in enumerate(befores)
    ]


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
    assert reference.sparse_delta(before, after)[0].tolist() == [1, 2]
    for backend in (cpu, gpu):
        check(backend, [(before, after)])


@BACKENDS
@given(listed=st.lists(pairs(), max_size=4))
@settings(max_examples=80)
def test_backend_equals_reference(backend: ModuleType, listed: list[Pair]):
    check(backend, listed)


@BACKENDS
def test_many_tensors_at_once(backend: ModuleType):
    check(backend, many_pairs())


def test_lists_of_more_elements_than_a_round_takes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gpu, "_ROUND", 10_000)
    rounds = [(some.start, some.stop) for some in gpu._rounds([10_000, 0, 1, 20_000, 4000, 6000, 1])]
    assert rounds == [(0, 2), (2, 3), (3, 4), (4, 6), (6, 7)]
    check(gpu, many_pairs())


@given(pair=pairs())
@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_portable_code_equals_reference(portable: None, pair: Pair):
    check(cpu, [pair])


@pytest.mark.parametrize("form", ["vectors", "portable"])
def test_more_changes_than_the_scratch_holds(form: str, little_scratch: None, request: pytest.FixtureRequest):
    if form == "portable":
        request.getfixturevalue("portable")
    check(cpu, many_pairs())
    for pair in many_pairs():
        check(cpu, [pair])


def test_tensors_of_a_kind_share_their_launches(monkeypatch: pytest.MonkeyPatch):
    launched = []

    def counted(kernel: Any, *args: Any, **constants: Any) -> None:
        launched.append(kernel)
        launch(kernel, *args, **constants)

    monkeypatch.setattr(gpu, "launch", counted)
    check(gpu, [(random_tensor(torch.int16, (40,), k), random_tensor(torch.int16, (40,), -k)) for k in range(1, 100)])
    assert launched == [gpu.compare_kernel, gpu.gather_kernel]


@given(pairs())
def test_writing_the_new_bits_gives_the_tensor_after(pair: Pair):
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
    check(cpu, [(before, after), *many_pairs(), (after, before)])


@pytest.mark.parametrize("density", [0.01, 0.9])
def test_memory_stays_within_outputs_and_scratch(density: float, monkeypatch: pytest.MonkeyPatch):
    before = torch.zeros(24_000_000, dtype=torch.int8)
    after = (torch.rand(before.shape, generator=torch.Generator().manual_seed(0)) < density).to(torch.int8)
    sparse_delta(before, after)
    monkeypatch.setattr(scratch, "_free", [])
    extra = peak_extra(lambda: sparse_delta(before, after), torch.device("cpu"))
    if extra is None:
        pytest.skip("needs a kernel that tells a process's peak memory")
    assert extra <= 64 << 20


@pytest.mark.parametrize("dtype", OPCHECK_DTYPES, ids=str)
def test_opcheck(dtype: torch.dtype):
    before, after = random_tensor(dtype, (40, 5), 1), random_tensor(dtype, (40, 5), 2)
    torch.library.opcheck(torch.ops.rlforget.sparse_delta.default, (before, after))
    torch.library.opcheck(torch.ops.rlforget.foreach_sparse_delta.default, ([before] * 2, [after, before]))


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
    with pytest.raises(error):
        foreach_sparse_delta([torch.ones(3), before], [torch.ones(3), after])


def test_lists():
    assert foreach_sparse_delta([], []) == ([], [], [])
    with pytest.raises(ValueError, match="1 and 2"):
        foreach_sparse_delta([torch.ones(3)], [torch.ones(3)] * 2)
