"""As in `test_delta_matmul`: results within an error bound of exact ones, and equal to the bit among themselves."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlforget_kernels.delta_matmul.reference import difference
from rlforget_kernels.project import cpu, energy_share, gpu, project, reference, residual_norm
from tests.kernels.matrices import CPU_WORK, basis, cpu_work, norm, pair, pairs, ranks, small_shapes
from tests.kernels.strategies import LAYOUTS, OPCHECK_DTYPES, laid_out, same_bits, seeds

BACKENDS = pytest.mark.parametrize("backend", [cpu, gpu], ids=["cpu", "gpu"])
BOUND = {False: 2.0**-15, True: 2.0**-43}
"""The error allowed, in units of ‖U‖ · ‖δ‖ · ‖V‖, in float32 and in float64."""


def assert_close(backend: ModuleType, both: tuple[Tensor, Tensor], u: Tensor, v: Tensor, float64: bool) -> None:
    (core,), energy = backend.project([both[0]], [both[1]], [u], [v], float64)
    (exact,), _ = reference.project([both[0]], [both[1]], [u], [v], float64=True)
    delta = norm(difference(*both, float64))
    assert core.dtype is (torch.float64 if float64 else torch.float32)
    assert norm(core.double() - exact) <= BOUND[float64] * norm(u) * delta * norm(v)
    assert energy[0, 0].sqrt().item() == pytest.approx(delta, rel=2.0**-18)
    assert energy[0, 1].sqrt().item() == pytest.approx(norm(core), rel=2.0**-20)


@given(work=cpu_work(), ranks=st.tuples(ranks, ranks), seed=seeds, layout=st.sampled_from(LAYOUTS))
@settings(max_examples=40)
def test_cpu_is_close_to_exact(
    work: tuple[tuple[Tensor, Tensor], bool], ranks: tuple[int, int], seed: int, layout: str
):
    both, float64 = work
    sides = (laid_out(basis(rows, rank, seed), layout) for rows, rank in zip(both[0].shape, ranks, strict=True))
    assert_close(cpu, both, *sides, float64)


@given(both=pairs(small_shapes), ranks=st.tuples(ranks, ranks), seed=seeds, float64=st.booleans())
@settings(max_examples=20)
def test_gpu_is_close_to_exact(both: tuple[Tensor, Tensor], ranks: tuple[int, int], seed: int, float64: bool):
    sides = (basis(rows, rank, seed) for rows, rank in zip(both[0].shape, ranks, strict=True))
    assert_close(gpu, both, *sides, float64)


@BACKENDS
def test_lists_give_what_single_pairs_give(backend: ModuleType):
    pairs = [pair(dtype, (40, 50), k) for k, dtype in enumerate([torch.bfloat16, torch.float32, torch.bfloat16])]
    pairs.append(pair(torch.bfloat16, (70, 20), 3))
    u, v = ([basis(both[0].shape[side], 6 + side, 9) for both in pairs] for side in (0, 1))
    before, after = map(list, zip(*pairs, strict=True))
    cores, energy = backend.project(before, after, u, v)
    for k in range(len(pairs)):
        (core,), single = backend.project([before[k]], [after[k]], [u[k]], [v[k]])
        assert same_bits(cores[k], core)
        assert same_bits(energy[k], single[0])


def test_threads_do_not_change_the_bits(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("rlforget_kernels.common.delta_parts_cpu.PART", 1 << 12)
    monkeypatch.setattr("rlforget_kernels.common.delta_parts_cpu._FACTOR", 1 << 10)
    before, after = pair(torch.bfloat16, (500, 5000), 0)
    u, v = basis(500, 20, 1), basis(5000, 33, 2)
    (expected,), energy = cpu.project([before], [after], [u], [v])
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    for _ in range(3):
        (core,), again = cpu.project([before], [after], [u], [v])
        assert same_bits(core, expected)
        assert same_bits(again, energy)


def test_gpu_in_pieces_is_close_to_exact(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gpu, "STORED", 2048)
    monkeypatch.setattr(gpu, "_STRIP", 32)
    assert_close(gpu, pair(torch.bfloat16, (100, 40), 0), basis(100, 5, 1), basis(40, 16, 2), False)


@BACKENDS
def test_energy_of_a_difference_inside_the_bases(backend: ModuleType):
    u, v = basis(90, 8, 0, orthonormal=True), basis(60, 5, 1, orthonormal=True)
    inside = u @ torch.randn(8, 5, generator=torch.Generator().manual_seed(2)) @ v.T
    outside = torch.randn(90, 60, generator=torch.Generator().manual_seed(3))
    outside = outside - u @ (u.T @ outside)
    before = torch.zeros(90, 60)
    (_, _), energy = backend.project([before] * 2, [inside, inside + outside], [u, u], [v, v])
    whole, part = norm(inside), norm(outside)
    share = energy_share(energy)
    assert share[0].item() == pytest.approx(1, abs=1e-5)
    assert share[1].item() == pytest.approx(whole**2 / (whole**2 + part**2), rel=1e-4)
    assert residual_norm(energy)[1].item() == pytest.approx(part, rel=1e-4)
    assert residual_norm(energy)[0].item() <= 4e-3 * whole
    assert residual_norm(energy.sum(0)).item() == pytest.approx(part, rel=1e-4)


def test_energy_share_of_no_difference_is_zero():
    before = torch.ones(4, 5)
    cores, energy = project([before], [before], [torch.ones(4, 2)], [torch.ones(5, 3)])
    assert same_bits(cores[0], torch.zeros(2, 3))
    assert energy_share(energy).tolist() == [0.0]
    assert residual_norm(energy).tolist() == [0.0]


@BACKENDS
@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
def test_empty_matrices(backend: ModuleType, shape: tuple[int, int]):
    empty = torch.empty(shape, dtype=torch.bfloat16)
    (core,), energy = backend.project([empty], [empty], [torch.ones(shape[0], 2)], [torch.ones(shape[1], 3)])
    assert same_bits(core, torch.zeros(2, 3))
    assert energy.tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize(("dtype", "float64"), [work for work in CPU_WORK if work[0] in OPCHECK_DTYPES])
def test_opcheck(dtype: torch.dtype, float64: bool):
    before, after = pair(dtype, (5, 7), 0)
    sides = [before, before], [after, after], [basis(5, 2, 1)] * 2, [basis(7, 3, 1)] * 2
    torch.library.opcheck(torch.ops.rlforget.project.default, (*sides, float64))


@pytest.mark.slow
def test_more_than_two_to_the_31_elements():
    shape = (65536, 32769)
    before = torch.zeros(shape, dtype=torch.float8_e5m2)
    after = torch.zeros(shape, dtype=torch.float8_e5m2)
    places = [(0, 0), (65535, 32768), (65535, 0), (40000, 17)]
    for k, place in enumerate(places):
        after[place] = float(2**k)
    u, v = basis(shape[0], 4, 0), basis(shape[1], 4, 1)
    (core,), energy = project([before], [after], [u], [v])
    exact = sum(2.0**k * torch.outer(u[i].double(), v[j].double()) for k, (i, j) in enumerate(places))
    assert norm(core.double() - exact) <= 1e-6 * norm(exact)
    assert energy[0, 0] == 1 + 4 + 16 + 64


A, U, V = torch.ones(3, 4), torch.ones(3, 2), torch.ones(4, 2)


@pytest.mark.parametrize(
    ("before", "after", "u", "v", "error", "message"),
    [
        ([A], [A], [U, U], [V], ValueError, "1 before, 1 after, 2 u, 1 v"),
        ([A], [A.half()], [U], [V], TypeError, r"before\[0\].*float32 and torch.float16"),
        ([A], [A[:2]], [U], [V], ValueError, r"\(3, 4\) and \(2, 4\)"),
        ([A], [A], [V], [V], ValueError, r"u\[0\].*\(3, r\).*\(4, 2\)"),
        ([A], [A], [U], [U], ValueError, r"v\[0\].*\(4, r\).*\(3, 2\)"),
        ([A], [A], [U.double()], [V], TypeError, r"u\[0\].*float64"),
        ([A], [A], [U], [V.repeat(1, 129)], ValueError, r"v\[0\].*256.*\(4, 258\)"),
    ],
)
def test_bad_input(
    before: list[Tensor], after: list[Tensor], u: list[Tensor], v: list[Tensor], error: type[Exception], message: str
):
    with pytest.raises(error, match=message):
        project(before, after, u, v)
