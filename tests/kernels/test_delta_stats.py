from __future__ import annotations

import math
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlforget_kernels.common import threads
from rlforget_kernels.common.bits import as_bits
from rlforget_kernels.delta_stats import DeltaStats, cpu, delta_stats, foreach_delta_stats, gpu, reference
from tests.kernels.strategies import (
    DTYPES,
    FLOATS,
    OPCHECK_DTYPES,
    changed_copy,
    laid_out,
    pairs,
    random_tensor,
    same_bits,
)

Pair = tuple[Tensor, Tensor]


def check(backend: ModuleType, listed: list[Pair]) -> None:
    """The list form of a backend against the reference, pair by pair."""
    found = backend.foreach_delta_stats([old for old, _ in listed], [new for _, new in listed])
    for position, pair in enumerate(listed):
        for column, truth in zip(found, reference.delta_stats(*pair), strict=True):
            assert same_bits(column[position], truth)


def bfloats(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.bfloat16)


def test_reference_on_a_case_worked_by_hand():
    inf, nan = math.inf, math.nan
    before = bfloats(1.0, 1.0, 0.0, -0.0, 2.0, 1e-6, inf, 3.0, nan, 5.0)
    after = bfloats(1.0, 1.0078125, -0.0, 1e-6, -2.0, 2e-6, 1.0, nan, inf, 5.0)
    stats = DeltaStats(*reference.delta_stats(before, after))
    tiny = float(bfloats(1e-6))
    counts = {name: int(stats.count(name)) for name in ("changed", "over_absolute", "over_relative", "non_finite")}
    assert counts == {"changed": 8, "over_absolute": 5, "over_relative": 7, "non_finite": 3}
    assert stats.counts[4:].tolist() == [1] * 4
    assert stats.sum("largest") == 4.0
    assert stats.sum("total") == pytest.approx(4.0078125 + 2 * tiny, rel=1e-12)
    assert stats.sum("total_of_squares") == pytest.approx(16 + 0.0078125**2 + 2 * tiny**2, rel=1e-12)
    # 2**-7, 0, 2**-20 twice, 2**2
    assert stats.exponents.nonzero().squeeze(1).tolist() == [0, 107, 120, 129]
    assert stats.exponents.sum() == 5
    far = int(bfloats(2.0).view(torch.int16)) * 2
    near = int(bfloats(1e-6).view(torch.int16))
    step = int(bfloats(2e-6).view(torch.int16)) - near
    expected = [0, 1, step.bit_length(), near.bit_length(), far.bit_length()]
    assert stats.steps.nonzero().squeeze(1).tolist() == sorted(expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("density", [0.05, 1.0])
def test_reference_measures_what_plain_torch_does(dtype: torch.dtype, density: float):
    """Against float64, on values whose differences float32 holds well."""
    before = random_tensor(dtype, (9001,), 1)
    if dtype.is_floating_point:
        before = torch.randn(9001, generator=torch.Generator().manual_seed(1)).to(dtype)
    after = changed_copy(before, density, 2)
    stats = DeltaStats(*reference.delta_stats(before, after))
    where = as_bits(before) != as_bits(after)
    old, new = before[where].double(), after[where].double()
    finite = old.isfinite() & new.isfinite()
    size = (new - old).abs()[finite]
    assert stats.count("changed") == where.sum()
    assert stats.count("non_finite") == (~finite).sum()
    assert stats.exponents.sum() == stats.steps.sum() == finite.sum()
    assert torch.allclose(stats.sum("total"), size.sum(), rtol=1e-6)
    assert torch.allclose(stats.sum("total_of_squares"), size.square().sum(), rtol=1e-6)
    assert torch.allclose(stats.sum("largest"), size.max(), rtol=1e-6)
    neighbours = (reference.rank(before[where]) - reference.rank(after[where])).abs() == 1
    assert stats.steps[1] == (neighbours & finite).sum()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_sums_are_as_precise_as_they_say(dtype: torch.dtype):
    """Against exact sums of the differences as they are computed: within what is cut off, 2**-38 of the whole."""
    before = random_tensor(dtype, (50_000,), 3)
    before = torch.where(before.double().abs() < 1e30, before, torch.ones((), dtype=dtype))
    after = changed_copy(before, 0.7, 4)
    after = torch.where(after.double().abs() < 1e30, after, before)
    size = (reference.working_values(after) - reference.working_values(before)).abs().double()
    stats = DeltaStats(*reference.delta_stats(before, after))
    total, squares = math.fsum(size.tolist()), math.fsum(size.square().tolist())
    assert abs(stats.sum("total").item() - total) <= total * 2.0**-38
    assert abs(stats.sum("total_of_squares").item() - squares) <= squares * 2.0**-38


def test_differences_too_large_for_float32_are_infinite():
    before, after = torch.tensor([3e38, 1.0]), torch.tensor([-3e38, 2.0])
    stats = DeltaStats(*reference.delta_stats(before, after))
    assert stats.sums.tolist() == [math.inf] * 3
    assert stats.count("non_finite") == 0
    assert stats.exponents.nonzero().squeeze(1).tolist() == [127, 255]


def test_steps_between_the_ends_of_int64():
    ends = torch.tensor([-(2**63), 0, -1]), torch.tensor([2**63 - 1, 2**63 - 1, 0])
    for backend in (cpu, gpu):
        check(backend, [ends])
    assert DeltaStats(*delta_stats(*ends)).steps.nonzero().squeeze(1).tolist() == [1, 63, 64]


@given(listed=st.lists(pairs(), min_size=1, max_size=3))
@settings(max_examples=60)
def test_cpu_equals_reference(listed: list[Pair]):
    check(cpu, listed)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int32], ids=str)
def test_a_processor_that_cannot_compress(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cpu, "can_compress", lambda: False)
    before = random_tensor(dtype, (70_001,), 5)
    check(cpu, [(before, changed_copy(before, density, 6)) for density in (0.01, 0.9)])


@given(listed=st.lists(pairs(), min_size=1, max_size=2))
@settings(max_examples=6)
def test_gpu_equals_reference(listed: list[Pair]):
    check(gpu, listed)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors_of_several_tiles(dtype: torch.dtype):
    """More changes in a tile than are added at a time, and a last tile that is not full; tensors of several groups."""
    before = random_tensor(dtype, (4096 + 700,), 5)
    listed = [(before, laid_out(changed_copy(before, density, 6), "unaligned")) for density in (0.01, 0.15)]
    check(gpu, [*listed, (before[:0], before[:0])])
    before = random_tensor(dtype, (50_000,), 5)
    check(cpu, [*listed, (before, changed_copy(before, 0.9, 6)), (before[:0], before[:0])])


@pytest.mark.parametrize("count", [1, 2, 3, 7, 400])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_threads_do_not_change_the_result(count: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(threads, "GRAIN", 1000)
    monkeypatch.setattr(torch, "get_num_threads", lambda: count)
    before = random_tensor(dtype, (60_001,), 0)
    after = changed_copy(before, 0.3, 1)
    check(cpu, [(before, after), (before[:5000], after[:5000]), (before[7:], after[7:])])


@pytest.mark.parametrize("programs", [1, 3])
def test_programs_do_not_change_the_result(programs: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gpu, "_SLOTS", programs)
    monkeypatch.setattr(gpu, "_RUN", 2)
    before = random_tensor(torch.bfloat16, (20_001,), 0)
    check(gpu, [(before, changed_copy(before, 0.02, 1)), (before[:5000], before[:5000])])


@pytest.mark.parametrize("dtype", OPCHECK_DTYPES, ids=str)
def test_opcheck(dtype: torch.dtype):
    before, after = random_tensor(dtype, (40, 5), 1), random_tensor(dtype, (40, 5), 2)
    torch.library.opcheck(torch.ops.rlforget.delta_stats.default, (before, after))
    torch.library.opcheck(torch.ops.rlforget.foreach_delta_stats.default, ([before] * 2, [after, before]))


@pytest.mark.parametrize(
    ("before", "after", "error"),
    [
        (torch.zeros(2), torch.zeros(3), ValueError),
        (torch.zeros(2), torch.zeros(2, dtype=torch.float16), ValueError),
        (torch.zeros(2, dtype=torch.complex64), torch.zeros(2, dtype=torch.complex64), TypeError),
    ],
)
def test_bad_input(before: Tensor, after: Tensor, error: type[Exception]):
    with pytest.raises(error):
        delta_stats(before, after)
    with pytest.raises(error):
        foreach_delta_stats([torch.ones(3), before], [torch.ones(3), after])


def test_lists():
    assert [tuple(column.shape) for column in foreach_delta_stats([], [])] == [(0, 8), (0, 3), (0, 256), (0, 65)]
    with pytest.raises(ValueError, match="1 and 2"):
        foreach_delta_stats([torch.ones(3)], [torch.ones(3)] * 2)
