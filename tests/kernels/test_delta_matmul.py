"""Sums of products differ in the last bits by their order, which is each backend's own: so results are held within an
error bound of exact ones, and to the bit against themselves, in other layouts, lists and numbers of threads."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlforget_kernels.common import amx_cpu
from rlforget_kernels.common.bits import bits_dtype
from rlforget_kernels.common.delta_blocks_cpu import by_matrix_unit
from rlforget_kernels.delta_matmul import cpu, delta_matmul, gpu, reference
from tests.kernels.matrices import CPU_WORK, basis, cpu_work, norm, pair, pairs, ranks, small_shapes
from tests.kernels.strategies import FLOATS, LAYOUTS, OPCHECK_DTYPES, laid_out, same_bits, seeds

BACKENDS = pytest.mark.parametrize("backend", [cpu, gpu], ids=["cpu", "gpu"])
BOUND = {False: 2.0**-16, True: 2.0**-44}
"""The error allowed, in units of ‖δ‖ · ‖right‖, in float32 and in float64."""
UNITS = pytest.mark.parametrize("matrix_unit", [False, True], ids=["vectors", "matrix unit"])
SQUARES = {False: 2.0**-18, True: 2.0**-44}
"""The relative error allowed of a sum of squares."""


@contextlib.contextmanager
def on_unit(matrix_unit: bool) -> Iterator[None]:
    """Multiply on the processor's matrix unit, or on vector registers."""
    if matrix_unit and not by_matrix_unit(torch.bfloat16, False):
        pytest.skip("needs a processor with a matrix unit")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(amx_cpu, "available", lambda: matrix_unit)
        yield


def assert_close(found: tuple[list[Tensor], Tensor], sides: tuple[list[Tensor], ...], float64: bool) -> None:
    before, after, right = sides
    products, energy = found
    exact, squares = reference.delta_matmul(before, after, right, float64=True)
    taken = [norm(reference.difference(*both, float64)) for both in zip(before, after, strict=True)]
    for product, truth, delta, factor in zip(products, exact, taken, right, strict=True):
        assert product.dtype is (torch.float64 if float64 else torch.float32)
        assert norm(product.double() - truth) <= BOUND[float64] * delta * norm(factor) + 1e-300
    assert torch.allclose(energy, squares, rtol=SQUARES[float64], atol=0)


@UNITS
@given(work=cpu_work(), rank=ranks, seed=seeds, layout=st.sampled_from(LAYOUTS))
@settings(max_examples=50)
def test_cpu_is_close_to_exact(
    matrix_unit: bool, work: tuple[tuple[Tensor, Tensor], bool], rank: int, seed: int, layout: str
):
    both, float64 = work
    right = laid_out(basis(both[0].shape[1], rank, seed), layout)
    sides = [both[0]], [both[1]], [right]
    with on_unit(matrix_unit):
        assert_close(cpu.delta_matmul(*sides, float64), sides, float64)


@given(both=pairs(small_shapes), rank=ranks, seed=seeds, float64=st.booleans())
@settings(max_examples=25)
def test_gpu_is_close_to_exact(both: tuple[Tensor, Tensor], rank: int, seed: int, float64: bool):
    sides = [both[0]], [both[1]], [basis(both[0].shape[1], rank, seed)]
    assert_close(gpu.delta_matmul(*sides, float64), sides, float64)


@pytest.mark.parametrize(("dtype", "matrix_unit"), [*((dtype, False) for dtype in FLOATS), (torch.bfloat16, True)])
def test_cpu_has_the_accuracy_of_float32_products(dtype: torch.dtype, matrix_unit: bool):
    before, after = pair(dtype, (500, 3000), 0)
    right = basis(3000, 40, 1)
    exact = reference.difference(before, after, False) @ right.double()
    with on_unit(matrix_unit):
        (product,), _ = delta_matmul([before], [after], [right])
    by_torch = reference.difference(before, after, False).float() @ right
    assert norm(product.double() - exact) <= 4 * norm(by_torch.double() - exact) <= 1e-5 * norm(exact)


@given(both=pairs(), rank=ranks, seed=seeds)
@settings(max_examples=30)
def test_rows_of_bfloat16_split_as_others_do(both: tuple[Tensor, Tensor], rank: int, seed: int):
    """The unit's own way of taking the difference of rows, and the general one that other layouts take."""
    before, after = both[0].float().bfloat16(), both[1].float().bfloat16()
    right = basis(before.shape[1], rank, seed)
    with on_unit(True):
        rows, energy = cpu.delta_matmul([before.contiguous()], [after.contiguous()], [right])
        others, same = cpu.delta_matmul([before.mT.contiguous().mT], [after.mT.contiguous().mT], [right])
    assert same_bits(rows[0], others[0])
    assert same_bits(energy, same)


def few_changes(dtype: torch.dtype, shape: tuple[int, int], share: float, seed: int) -> tuple[Tensor, Tensor]:
    """A pair of which about that share of the elements differ, many of them by more than bfloat16 holds."""
    before, after = pair(dtype, shape, seed, 1.0)
    chosen = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < share
    bits = [side.view(bits_dtype(dtype)) for side in (before, after)]
    return before, torch.where(chosen, bits[1], bits[0]).view(dtype)


@UNITS
@pytest.mark.parametrize(("dtype", "float64"), CPU_WORK)
@pytest.mark.parametrize("share", [0.0, 0.002, 0.03, 0.06, 0.5])
@pytest.mark.parametrize(("shape", "rank"), [((150, 1100), 33), ((70, 2000), 100), ((3, 70), 16)])
def test_few_changes(
    matrix_unit: bool, dtype: torch.dtype, float64: bool, share: float, shape: tuple[int, int], rank: int
):
    before, after = few_changes(dtype, shape, share, 0)
    right = [basis(shape[1], rank, 1)]
    with on_unit(matrix_unit):
        found = cpu.delta_matmul([before], [after], right, float64)
        assert_close(found, ([before], [after], right), float64)
        for layout in LAYOUTS[1:]:
            (product,), energy = cpu.delta_matmul(
                [laid_out(before, layout)], [laid_out(after, LAYOUTS[-1])], right, float64
            )
            assert same_bits(product, found[0][0])
            assert same_bits(energy, found[1])


@UNITS
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_on_the_right_is_seen_where_nothing_changed(matrix_unit: bool, value: float):
    before, after = few_changes(torch.bfloat16, (40, 90), 0.01, 0)
    right = basis(90, 20, 1)
    right[7, 3] = value
    with on_unit(matrix_unit):
        (product,), _ = cpu.delta_matmul([before], [after], [right])
    assert not product[:, 3].isfinite().any()


@BACKENDS
@pytest.mark.parametrize("float64", [False, True])
def test_layouts_and_lists_do_not_change_the_bits(backend: ModuleType, float64: bool):
    shape, rank = (70, 90), 20
    before, after = pair(torch.bfloat16, shape, 0)
    right = basis(shape[1], rank, 1)
    (expected,), energy = backend.delta_matmul([before], [after], [right], float64)
    laid = [(laid_out(before, one), laid_out(after, other)) for one in LAYOUTS for other in LAYOUTS[:2]]
    others = [pair(torch.float32, (40, 20), 2), pair(torch.bfloat16, shape, 3)]
    sides = [*laid, *others]
    factors = [right] * len(laid) + [basis(20, 5, 4), basis(shape[1], rank, 5)]
    products, energies = backend.delta_matmul(*map(list, zip(*sides, strict=True)), factors, float64)
    for product, squares in list(zip(products, energies, strict=True))[: len(laid)]:
        assert same_bits(product, expected)
        assert squares == energy[0]


@pytest.mark.parametrize("float64", [False, True])
def test_no_number_of_programs_changes_a_product(float64: bool, monkeypatch: pytest.MonkeyPatch):
    """Of a GPU: neither that of a launch nor that of launches."""
    before, after = map(list, zip(*(pair(torch.bfloat16, (150, 90), seed) for seed in range(3)), strict=True))
    right = basis(90, 20, 9)
    expected, energy = gpu.delta_matmul(before, after, [right] * 3, float64)
    (rows,), _ = gpu.delta_matmul([before[0][:64]], [after[0][:64]], [right], float64)
    assert same_bits(rows, expected[0][:64])
    monkeypatch.setattr(gpu, "TEMPORARY", 1)
    products, energies = gpu.delta_matmul(before, after, [right] * 3, float64)
    assert all(map(same_bits, products, expected))
    assert same_bits(energies, energy)


@pytest.mark.parametrize(("dtype", "float64"), CPU_WORK)
@pytest.mark.parametrize("shape", [(70, 90), (1, 33), (33, 1), (150, 1100)])
def test_sides_that_both_lie_in_columns_have_the_same_bits(dtype: torch.dtype, float64: bool, shape: tuple[int, int]):
    before, after = pair(dtype, shape, 0)
    right = basis(shape[1], 20, 1)
    with on_unit(False):
        (expected,), energy = cpu.delta_matmul([before], [after], [right], float64)
        columns = [laid_out(side, "transposed") for side in (before, after)]
        (found,), same = cpu.delta_matmul([columns[0]], [columns[1]], [right], float64)
    assert same_bits(found, expected)
    assert same_bits(same, energy)


@BACKENDS
def test_transposed_views_multiply_from_the_other_side(backend: ModuleType):
    before, after = pair(torch.bfloat16, (50, 70), 0)
    left = basis(50, 7, 1)
    (found,), _ = backend.delta_matmul([before.mT], [after.mT], [left])
    exact = reference.difference(before, after, False).mT @ left.double()
    assert norm(found.double() - exact) <= BOUND[False] * norm(after.double() - before.double()) * norm(left)


@UNITS
def test_threads_do_not_change_the_bits(matrix_unit: bool, monkeypatch: pytest.MonkeyPatch):
    with on_unit(matrix_unit):
        assert_threads_do_not_change_the_bits(monkeypatch)


def assert_threads_do_not_change_the_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlforget_kernels.common.delta_parts_cpu.PART", 1 << 12)
    monkeypatch.setattr("rlforget_kernels.common.delta_parts_cpu._FACTOR", 1 << 10)
    before, after = pair(torch.bfloat16, (500, 5000), 0)
    right = basis(5000, 33, 1)
    sides = [before, before[:100]], [after, after[:100]], [right, right]
    expected, energy = cpu.delta_matmul(*sides)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    for _ in range(3):
        products, energies = cpu.delta_matmul(*sides)
        assert all(same_bits(one, other) for one, other in zip(products, expected, strict=True))
        assert same_bits(energies, energy)


@BACKENDS
@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
def test_empty_matrices(backend: ModuleType, shape: tuple[int, int]):
    empty = torch.empty(shape, dtype=torch.bfloat16)
    (product,), energy = backend.delta_matmul([empty], [empty], [torch.ones(shape[1], 3)])
    assert same_bits(product, torch.zeros(shape[0], 3))
    assert energy.tolist() == [0.0]


@BACKENDS
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_seen(backend: ModuleType, value: float):
    before, after = pair(torch.bfloat16, (40, 40), 0)
    after[3, 5] = value
    (product,), energy = backend.delta_matmul([before], [after], [basis(40, 4, 1)])
    assert not product[3].isfinite().any()
    assert product[:3].isfinite().all()
    assert product[4:].isfinite().all()
    assert not energy.isfinite().any()


@pytest.mark.parametrize(("dtype", "float64"), [work for work in CPU_WORK if work[0] in OPCHECK_DTYPES])
def test_opcheck(dtype: torch.dtype, float64: bool):
    before, after = pair(dtype, (5, 7), 0)
    right = basis(7, 3, 1)
    sides = [before, before], [after, after], [right, right]
    torch.library.opcheck(torch.ops.rlforget.delta_matmul.default, (*sides, float64))


A, R = torch.ones(3, 4), torch.ones(4, 2)


@pytest.mark.parametrize(
    ("before", "after", "right", "error", "message"),
    [
        ([A], [A, A], [R], ValueError, "1 before, 2 after, 1 right"),
        ([], [], [], ValueError, "at least 1"),
        ([A], [A.half()], [R], TypeError, r"before\[0\].*float32 and torch.float16"),
        ([A.int()], [A.int()], [R], TypeError, "int32"),
        ([A], [A.mT], [R], ValueError, r"\(3, 4\) and \(4, 3\)"),
        ([A[0]], [A[0]], [R], ValueError, "matrices"),
        ([A, A], [A, A], [R, R[1:]], ValueError, r"right\[1\].*\(4, r\).*\(3, 2\)"),
        ([A], [A], [R[:, :0]], ValueError, r"from 1 to 256"),
        ([A], [A], [R.repeat(1, 200)], ValueError, r"\(4, 400\)"),
        ([A], [A], [R.double()], TypeError, r"right\[0\].*float64"),
    ],
)
def test_bad_input(
    before: list[Tensor], after: list[Tensor], right: list[Tensor], error: type[Exception], message: str
):
    with pytest.raises(error, match=message):
        delta_matmul(before, after, right)


SCRIPT = """
import torch
from rlforget_kernels.common import amx_cpu
from rlforget_kernels.common.products_cpu import TILE_ROWS
from rlforget_kernels.delta_matmul import delta_matmul
from rlforget_kernels.project_rollback import project_rollback_
from rlforget_kernels.project_sparse import project_sparse
from tests.kernels.matrices import basis, pair

amx_cpu.available = lambda: False

def show(tensor):
    print(tensor.flatten().view(torch.int32).double().mul(torch.arange(float(tensor.numel()))).sum().item())

print(TILE_ROWS)
before, after = pair(torch.bfloat16, (70, 1500), 0)
right = basis(1500, 40, 1)
some = torch.where(torch.rand(before.shape, generator=torch.Generator().manual_seed(0)) < 0.02, after, before)
for changed in (after, some):
    (product,), energy = delta_matmul([before], [changed], [right])
    show(product)
    print(energy.item())
places = (some != before).flatten().nonzero().squeeze(1)
show(project_sparse(places, (some.float() - before.float()).flatten()[places], before.shape, basis(70, 9, 2), right))
weight = after.clone()
project_rollback_(weight, before, basis(70, 9, 2), right, torch.full((9, 40), 1e-6))
show(weight.float())
"""


def test_a_processor_with_narrower_vectors_gives_the_same_bits():
    """As numba compiles for one without AVX-512, in a process of its own."""
    narrow = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx,+avx2,+fma,+f16c"}
    run = {"check": True, "capture_output": True, "text": True}
    ours, theirs = (
        subprocess.run([sys.executable, "-c", SCRIPT], env=os.environ | extra, **run).stdout.split()
        for extra in ({}, narrow)
    )
    assert theirs[0] == "4"
    assert ours[1:] == theirs[1:]
