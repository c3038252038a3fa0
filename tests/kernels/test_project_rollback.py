"""What is written is the weight less a correction, rounded once. A correction is a sum of products, so it is exact but
for an error within a bound: then what is written lies between what the ends of that interval round to."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlforget_kernels.common.bits import as_bits
from rlforget_kernels.project_rollback import cpu, foreach_project_rollback_, gpu, project_rollback_, reference
from rlforget_kernels.subtract.reference import subtract_
from tests.kernels.matrices import CPU_DTYPES, basis, layouts, norm, pair, ranks, small_shapes
from tests.kernels.strategies import FLOATS, LAYOUTS, OPCHECK_DTYPES, laid_out, random_tensor, same_bits, seeds

BACKENDS = pytest.mark.parametrize("backend", [cpu, gpu], ids=["cpu", "gpu"])
BOUND = 2.0**-14
"""The error allowed of U M Vᵀ, in units of ‖U‖ · ‖M‖ · ‖V‖."""


def ordered(floats: Tensor) -> Tensor:
    """Integers in the order of `floats`; both zeros are 0."""
    bits = as_bits(floats).long()
    return torch.where(bits < 0, -(bits - torch.iinfo(as_bits(floats).dtype).min), bits)


def subtracted(weight: Tensor, change: Tensor, seed: int | None, offset: int) -> Tensor:
    """The weight less a float64 change; of float64 weights the change is not rounded to float32 first."""
    weight = weight.clone(memory_format=torch.contiguous_format)
    if weight.dtype is torch.float64:
        return weight - change
    subtract_(weight, change.to(torch.float32), seed, offset)
    return weight


def assert_rounded_once(
    found: Tensor, weight: Tensor, change: Tensor, error: float, seed: int | None, offset: int
) -> None:
    """`found` is what weight − c rounds to, for some c within `error` of each entry of `change`."""
    low, high = (subtracted(weight, change + side, seed, offset) for side in (error, -error))
    assert (ordered(low) <= ordered(found)).all()
    assert (ordered(found) <= ordered(high)).all()


roundings = st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1))


@BACKENDS
@given(
    data=st.data(),
    shape=small_shapes,
    ranks=st.tuples(ranks, ranks),
    layouts=st.tuples(layouts, layouts),
    tensor_seed=seeds,
    seed=roundings,
    offset=st.sampled_from([0, 1, 999, 2**40]),
)
@settings(max_examples=25)
def test_product_is_subtracted_and_rounded_once(
    backend: ModuleType,
    data: st.DataObject,
    shape: tuple[int, int],
    ranks: tuple[int, int],
    layouts: tuple[str, str],
    tensor_seed: int,
    seed: int | None,
    offset: int,
):
    dtype = data.draw(st.sampled_from(CPU_DTYPES if backend is cpu else FLOATS))
    weight, _ = pair(dtype, shape, tensor_seed)
    u, v = (laid_out(basis(rows, rank, tensor_seed + 1), layouts[0]) for rows, rank in zip(shape, ranks, strict=True))
    middle = basis(ranks[0], ranks[1], tensor_seed + 2) * 0.1 / (ranks[0] * ranks[1]) ** 0.5
    found = laid_out(weight, layouts[1])
    backend.foreach_subtract_product_([found], [u], [middle], [v], seed, [offset])
    change = u.double() @ middle.double() @ v.double().T
    assert_rounded_once(found, weight, change, BOUND * norm(u) * norm(middle) * norm(v), seed, offset)


@given(
    dtype=st.sampled_from(CPU_DTYPES),
    shape=small_shapes,
    ranks=st.tuples(ranks, ranks),
    layouts=st.tuples(layouts, layouts),
    tensor_seed=seeds,
    seed=roundings,
)
@settings(max_examples=40)
def test_operator_is_close_to_exact(
    dtype: torch.dtype,
    shape: tuple[int, int],
    ranks: tuple[int, int],
    layouts: tuple[str, str],
    tensor_seed: int,
    seed: int | None,
):
    before, weight = pair(dtype, shape, tensor_seed, 0.1)
    u, v = (
        basis(rows, min(rank, rows), tensor_seed + 1, orthonormal=True) for rows, rank in zip(shape, ranks, strict=True)
    )
    shrinkage = torch.rand(u.shape[1], v.shape[1], generator=torch.Generator().manual_seed(tensor_seed))
    found = laid_out(weight, layouts[0])
    project_rollback_(found, laid_out(before, layouts[1]), u, v, shrinkage, seed, 3)
    change = reference.correction(weight, before, u, v, shrinkage)
    error = BOUND * norm(weight.double() - before.double()) * norm(u) ** 2 * norm(v) ** 2
    # Stochastic rounding is monotone for one draw, but for the largest numbers, which are not near.
    assert_rounded_once(found, weight, change, error + 1e-300, seed, 3)


@settings(max_examples=20)
@given(dtype=st.sampled_from(CPU_DTYPES), shape=small_shapes, ranks=st.tuples(ranks, ranks), tensor_seed=seeds)
def test_bases_to_write_with_of_their_own(
    dtype: torch.dtype, shape: tuple[int, int], ranks: tuple[int, int], tensor_seed: int
):
    before, weight = pair(dtype, shape, tensor_seed, 0.1)
    u, v, write_u, write_v = (
        basis(shape[side], ranks[side], tensor_seed + k) for k, side in enumerate((0, 1, 0, 1), start=1)
    )
    shrinkage = 1e-3 * torch.rand(ranks, generator=torch.Generator().manual_seed(tensor_seed))
    change = weight.double() - before.double()
    step = write_u.double() @ (shrinkage.double() * (u.double().T @ change @ v.double())) @ write_v.double().T
    found = weight.clone()
    project_rollback_(found, before, u, v, shrinkage, None, 3, write_u, write_v)
    error = BOUND * norm(change) * norm(u) * norm(v) * norm(write_u) * norm(write_v)
    assert_rounded_once(found, weight, step, error + 1e-300, None, 3)
    if dtype is torch.float32:
        alone, expected = weight.clone(), weight.clone()
        project_rollback_(alone, before, u, v, shrinkage, None, 3, write_v=v)
        project_rollback_(expected, before, u, v, shrinkage, None, 3)
        assert same_bits(alone, expected)


def test_whole_bases_take_everything_back():
    before, weight = pair(torch.float32, (30, 20), 0, 0.1)
    u, v = basis(30, 30, 1, orthonormal=True), basis(20, 20, 2, orthonormal=True)
    project_rollback_(weight, before, u, v, torch.ones(30, 20))
    assert (weight - before).abs().max() <= 1e-6


def test_no_shrinkage_changes_nothing():
    before, weight = pair(torch.bfloat16, (30, 20), 0, 0.1)
    expected = weight.clone()
    project_rollback_(weight, before, basis(30, 4, 1), basis(20, 5, 2), torch.zeros(4, 5))
    assert same_bits(weight, expected)


@BACKENDS
@pytest.mark.parametrize("seed", [None, 3])
def test_layouts_and_lists_do_not_change_the_bits(backend: ModuleType, seed: int | None):
    weight, _ = pair(torch.bfloat16, (70, 90), 0)
    u, v, middle = basis(70, 6, 1), basis(90, 5, 2), basis(6, 5, 3) * 0.01
    expected = weight.clone()
    backend.foreach_subtract_product_([expected], [u], [middle], [v], seed, [7])
    others = [laid_out(weight, layout) for layout in LAYOUTS]
    other = pair(torch.float32, (20, 30), 4)[0]
    lists = [*others, other], [u] * 4 + [u[:20]], [middle] * 5, [v] * 4 + [v[:30]]
    backend.foreach_subtract_product_(*lists, seed, [7] * 5)
    assert all(same_bits(found.contiguous(), expected) for found in others)
    single = pair(torch.float32, (20, 30), 4)[0]
    backend.foreach_subtract_product_([single], [u[:20]], [middle], [v[:30]], seed, [7])
    assert same_bits(other, single)


@given(seed=seeds, columns=st.sampled_from([32, 64, 96, 100]))
@settings(max_examples=20)
def test_rows_of_bfloat16_are_written_as_others_are(seed: int, columns: int):
    """Whatever their bits: the way that elements side by side have to themselves, and the general one."""
    weight = random_tensor(torch.bfloat16, (70, columns), seed)
    u, v, middle = basis(70, 4, seed + 1), basis(columns, 4, seed + 2), basis(4, 4, seed + 3)
    found, expected = weight.clone(), laid_out(weight, "transposed")
    cpu.foreach_subtract_product_([found, expected], [u, u], [middle, middle], [v, v], None, [0, 0])
    assert same_bits(found, expected.contiguous())


def test_threads_do_not_change_the_bits(monkeypatch: pytest.MonkeyPatch):
    before, weight = pair(torch.bfloat16, (300, 2100), 0)
    arguments = before, basis(300, 6, 1), basis(2100, 40, 2), torch.full((6, 40), 1e-4)
    expected = weight.clone()
    monkeypatch.setattr("rlforget_kernels.common.delta_parts_cpu.PART", 1 << 12)
    monkeypatch.setattr("rlforget_kernels.common.delta_parts_cpu._FACTOR", 1 << 10)
    project_rollback_(expected, *arguments, seed=5)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    for _ in range(3):
        found = weight.clone()
        project_rollback_(found, *arguments, seed=5)
        assert same_bits(found, expected)


def test_gpu_in_pieces_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch):
    weight, _ = pair(torch.bfloat16, (150, 140), 0)
    u, v, middle = basis(150, 6, 1), basis(140, 5, 2), basis(6, 5, 3) * 0.01
    expected = weight.clone()
    gpu.foreach_subtract_product_([expected], [u], [middle], [v], 5, [7])
    monkeypatch.setattr(gpu, "_STORED", 1)
    gpu.foreach_subtract_product_([weight], [u], [middle], [v], 5, [7])
    assert same_bits(weight, expected)


def test_random_bits_follow_the_coordinate_alone():
    """A shard of rows is written as the whole is, given the same product."""
    weight, _ = pair(torch.bfloat16, (100, 64), 0)
    u, v, middle = basis(100, 4, 1), basis(64, 4, 2), basis(4, 4, 3) * 1e-3
    whole, shard = weight.clone(), weight[32:].clone()
    cpu.foreach_subtract_product_([whole], [u], [middle], [v], 7, [10])
    cpu.foreach_subtract_product_([shard], [u[32:]], [middle], [v], 7, [10 + 32 * 64])
    assert same_bits(shard, whole[32:])
    other = weight.clone()
    cpu.foreach_subtract_product_([other], [u], [middle], [v], 8, [10])
    assert not same_bits(other, whole)


@pytest.mark.parametrize("dtype", [dtype for dtype in CPU_DTYPES if dtype.itemsize < 4], ids=str)
@pytest.mark.parametrize(("start", "change"), [(1.25, 0.0123), (1.0, 1e-5), (-0.75, 0.0123)])
def test_stochastic_rounding_is_unbiased(dtype: torch.dtype, start: float, change: float):
    shape = (2500, 4000)
    draws = shape[0] * shape[1]
    weight, before = (torch.full(shape, value).to(dtype) for value in (start, 0.5))
    u, v = (torch.full((size, 1), size**-0.5) for size in shape)  # of what changes alike everywhere, a basis
    exact = float(weight[0, 0]) - change
    project_rollback_(weight, before, u, v, torch.full((1, 1), change / (start - 0.5)), seed=11)
    lower, upper = as_bits(weight).unique().view(dtype).double().sort().values  # the two neighbours
    chance = (exact - lower) / (upper - lower)
    found = (as_bits(weight) == as_bits(upper.to(dtype))).double().mean()
    assert 0 < chance < 1
    assert (found - chance).abs() <= 5 * (chance * (1 - chance) / draws) ** 0.5


def test_list_form_is_the_single_form_with_offsets_that_follow():
    pairs = [pair(torch.bfloat16, shape, k, 0.1) for k, shape in enumerate([(20, 30), (5, 7), (20, 30)])]
    before = [both[0] for both in pairs]
    u, v = ([basis(old.shape[side], 3, side) for old in before] for side in (0, 1))
    shrinkage = [torch.rand(3, 3, generator=torch.Generator().manual_seed(k)) for k in range(3)]
    found = [both[1].clone() for both in pairs]
    foreach_project_rollback_(found, before, u, v, shrinkage, seed=5)
    for k, offset in enumerate([0, 600, 635]):
        expected = pairs[k][1].clone()
        project_rollback_(expected, before[k], u[k], v[k], shrinkage[k], seed=5, offset=offset)
        assert same_bits(found[k], expected)
    foreach_project_rollback_([], [], [], [], [])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_an_error_and_nothing_is_written(value: float):
    before, weight = pair(torch.bfloat16, (20, 30), 0, 0.1)
    broken = weight.clone()
    broken[2, 3] = value
    weights = [weight.clone(), broken.clone()]
    lists = [before] * 2, [basis(20, 3, 1)] * 2, [basis(30, 3, 2)] * 2, [torch.ones(3, 3)] * 2
    with pytest.raises(ValueError, match=r"foreach_project_rollback_: weight\[1\].*NaN or infinity"):
        foreach_project_rollback_(weights, *lists)
    assert same_bits(weights[0], weight)
    assert same_bits(weights[1], broken)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0)])
def test_empty_weights(shape: tuple[int, int]):
    empty = torch.empty(shape)
    project_rollback_(empty, empty.clone(), torch.ones(shape[0], 2), torch.ones(shape[1], 3), torch.ones(2, 3))


@pytest.mark.parametrize("dtype", [dtype for dtype in CPU_DTYPES if dtype in OPCHECK_DTYPES], ids=str)
@pytest.mark.parametrize("seed", [None, 3])
def test_opcheck(dtype: torch.dtype, seed: int | None):
    before, weight = pair(dtype, (5, 7), 0)
    arguments = before, basis(5, 2, 1), basis(7, 3, 2), torch.rand(2, 3)
    torch.library.opcheck(torch.ops.rlforget.project_rollback_.default, (weight, *arguments, seed, 5))
    bases = basis(5, 2, 4), basis(7, 3, 5)
    torch.library.opcheck(torch.ops.rlforget.project_rollback_.default, (weight, *arguments, seed, 5, *bases))
    lists = [[weight.clone(), weight.clone()], *([argument, argument.clone()] for argument in arguments)]
    torch.library.opcheck(torch.ops.rlforget.foreach_project_rollback_.default, (*lists, seed, None))


@pytest.mark.parametrize(
    ("bases", "message"),
    [
        ({"write_u": torch.ones(4, 2)}, r"write_u.*\(3, r\)"),
        ({"write_v": torch.ones(4, 3)}, r"write_v.*\(4, 2\).*\(4, 3\)"),
    ],
)
def test_bad_bases_to_write_with(bases: dict[str, Tensor], message: str):
    weight = 2 * A
    with pytest.raises(ValueError, match=message):
        project_rollback_(weight, A, U, V, S, **bases)
    assert (weight == 2).all()


A, U, V, S = torch.ones(3, 4), torch.ones(3, 2), torch.ones(4, 2), torch.ones(2, 2)


@pytest.mark.parametrize(
    ("before", "u", "v", "shrinkage", "error", "message"),
    [
        (A.half(), U, V, S, TypeError, r"before\[0\], weight\[0\].*float16 and torch.float32"),
        (A[:2], U, V, S, ValueError, r"\(2, 4\) and \(3, 4\)"),
        (A, V, V, S, ValueError, r"u\[0\].*\(3, r\).*\(4, 2\)"),
        (A, U, V.double(), S, TypeError, r"v\[0\].*float64"),
        (A, U, V, S.double(), TypeError, r"shrinkage\[0\].*float64"),
        (A, U, V, S[0], ValueError, r"shrinkage\[0\].*\(2, 2\).*\(2,\)"),
    ],
)
def test_bad_input(before: Tensor, u: Tensor, v: Tensor, shrinkage: Tensor, error: type[Exception], message: str):
    weight = 2 * A
    with pytest.raises(error, match=message):
        project_rollback_(weight, before, u, v, shrinkage)
    with pytest.raises(error, match=message):
        foreach_project_rollback_([weight], [before], [u], [v], [shrinkage])
    with pytest.raises(ValueError, match="1 weights, 1 before, 2 u, 1 v, 1 shrinkage, 1 offsets"):
        foreach_project_rollback_([weight], [before], [u, u], [v], [shrinkage])
    assert (weight == 2).all()
