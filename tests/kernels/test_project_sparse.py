"""As in `test_project`: within an error bound of exact results, and of those of the dense form."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlforget_kernels.project import project
from rlforget_kernels.project_sparse import cpu, gpu, project_sparse, reference
from tests.kernels.matrices import basis, norm, ranks, shapes, small_shapes
from tests.kernels.strategies import generator, same_bits, seeds

BACKENDS = pytest.mark.parametrize("backend", [cpu, gpu], ids=["cpu", "gpu"])
BOUND = {False: 2.0**-15, True: 2.0**-43}
"""The error allowed, in units of ‖U‖ · ‖δ‖ · ‖V‖, in float32 and in float64."""
PRECISIONS = [(torch.float32, False), (torch.float32, True), (torch.float64, True)]
"""Of the values, and whether to compute in float64."""
densities = st.sampled_from([0.0, 0.002, 0.05, 0.5, 1.0])


def changes(
    shape: tuple[int, int], density: float, seed: int, dtype: torch.dtype, values: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    random = generator(seed)
    indices = (torch.rand(shape[0] * shape[1], generator=random) < density).nonzero().squeeze(1)
    return indices.to(dtype), torch.randn(len(indices), generator=random, dtype=values)


def assert_close(
    backend: ModuleType,
    shape: tuple[int, int],
    density: float,
    ranks: tuple[int, int],
    seed: int,
    dtype: torch.dtype,
    precision: tuple[torch.dtype, bool] = (torch.float32, False),
) -> None:
    held, float64 = precision
    indices, values = changes(shape, density, seed, dtype, held)
    u, v = (basis(rows, rank, seed + 1) for rows, rank in zip(shape, ranks, strict=True))
    core = backend.project_sparse(indices, values, shape, u, v, float64)
    exact = (u.double()[indices.long() // shape[1]] * values.double()[:, None]).T @ v.double()[
        indices.long() % shape[1]
    ]
    bound = BOUND[float64] * norm(u) * norm(values) * norm(v)
    assert core.dtype is (torch.float64 if float64 else torch.float32)
    assert norm(core.double() - exact) <= bound
    assert norm(reference.project_sparse(indices, values, shape, u, v, float64).double() - exact) <= bound


@given(
    shape=shapes,
    density=densities,
    ranks=st.tuples(ranks, ranks),
    seed=seeds,
    dtype=st.sampled_from([torch.int32, torch.int64]),
    precision=st.sampled_from(PRECISIONS),
)
def test_cpu_is_close_to_exact(
    shape: tuple[int, int],
    density: float,
    ranks: tuple[int, int],
    seed: int,
    dtype: torch.dtype,
    precision: tuple[torch.dtype, bool],
):
    assert_close(cpu, shape, density, ranks, seed, dtype, precision)


@given(
    shape=small_shapes,
    density=densities,
    ranks=st.tuples(ranks, ranks),
    seed=seeds,
    dtype=st.sampled_from([torch.int32, torch.int64]),
    precision=st.sampled_from(PRECISIONS),
)
@settings(max_examples=20)
def test_gpu_is_close_to_exact(
    shape: tuple[int, int],
    density: float,
    ranks: tuple[int, int],
    seed: int,
    dtype: torch.dtype,
    precision: tuple[torch.dtype, bool],
):
    assert_close(gpu, shape, density, ranks, seed, dtype, precision)


def test_equals_the_dense_form():
    shape = (300, 1200)
    indices, values = changes(shape, 0.02, 0, torch.int32)
    after = torch.zeros(shape)
    after.view(-1)[indices.long()] = values
    u, v = basis(shape[0], 9, 1, orthonormal=True), basis(shape[1], 40, 2, orthonormal=True)
    (dense,), energy = project([torch.zeros(shape)], [after], [u], [v])
    sparse = project_sparse(indices, values, shape, u, v)
    assert norm(sparse - dense) <= 2e-6 * norm(dense)
    assert energy[0, 0].item() == pytest.approx(norm(values) ** 2, rel=1e-6)


@pytest.mark.parametrize("float64", [False, True])
def test_threads_do_not_change_the_bits(float64: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cpu, "_STRIP", 16)
    shape = (300, 200)
    indices, values = changes(shape, 0.1, 0, torch.int64)
    u, v = basis(300, 20, 1), basis(200, 33, 2)
    expected = cpu.project_sparse(indices, values, shape, u, v, float64)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    for _ in range(3):
        assert same_bits(cpu.project_sparse(indices, values, shape, u, v, float64), expected)


@BACKENDS
@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_equals_the_reference_to_the_bit_where_sums_are_exact(
    backend: ModuleType, precision: tuple[torch.dtype, bool], dtype: torch.dtype
):
    shape, (held, float64) = (150, 90), precision
    indices, values = changes(shape, 0.3, 0, dtype, held)
    u, v = (basis(rows, rank, 1).round() for rows, rank in zip(shape, (17, 40), strict=True))
    arguments = indices, values.round(), shape, u, v, float64
    # Not the sign of a zero: a sum that starts at 0 has none.
    assert torch.equal(backend.project_sparse(*arguments), reference.project_sparse(*arguments))


@BACKENDS
def test_float64_holds_what_float32_does_not(backend: ModuleType):
    indices, values = torch.tensor([0, 1, 2]), torch.tensor([2.0**40, 1 + 2.0**-40, -(2.0**40)], dtype=torch.float64)
    core = backend.project_sparse(indices, values, (1, 3), torch.ones(1, 1), torch.ones(3, 1), float64=True)
    assert core.item() == pytest.approx(1, abs=2.0**-11)


def test_gpu_in_pieces_is_close_to_exact(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("rlforget_kernels.project.gpu.STORED", 2048)
    monkeypatch.setattr("rlforget_kernels.project.gpu._STRIP", 32)
    assert_close(gpu, (100, 40), 0.3, (5, 16), 0, torch.int64)


@BACKENDS
@pytest.mark.parametrize("shape", [(4, 5), (0, 5), (5, 0)])
def test_no_changes(backend: ModuleType, shape: tuple[int, int]):
    none = torch.empty(0, dtype=torch.int32), torch.empty(0)
    core = backend.project_sparse(*none, shape, torch.ones(shape[0], 2), torch.ones(shape[1], 3))
    assert same_bits(core, torch.zeros(2, 3))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize(("held", "float64"), PRECISIONS)
def test_opcheck(dtype: torch.dtype, held: torch.dtype, float64: bool):
    indices, values = changes((5, 7), 0.5, 0, dtype, held)
    arguments = (indices, values, (5, 7), basis(5, 2, 1), basis(7, 3, 2), float64)
    # Not the checks that make tensors of their own: indices must stay indices.
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.rlforget.project_sparse.default, arguments, test_utils=checks)


I, W, U, V = torch.tensor([1, 5, 7]), torch.ones(3), torch.ones(3, 2), torch.ones(4, 2)


@pytest.mark.parametrize(
    ("indices", "values", "shape", "u", "v", "error", "message"),
    [
        (I.short(), W, (3, 4), U, V, TypeError, "indices.*int16"),
        (I, W[:2], (3, 4), U, V, ValueError, r"\(3,\) and \(2,\)"),
        (I, W.half(), (3, 4), U, V, TypeError, "values.*float16"),
        (I, W.double(), (3, 4), U, V, TypeError, "values: expected float32;.*float64"),
        (I, W, (3, 4, 1), U, V, ValueError, r"\(3, 4, 1\)"),
        (I, W, (3, 4), V, V, ValueError, r"u.*\(3, r\).*\(4, 2\)"),
        (I, W, (3, 4), U, V.double(), TypeError, "v.*float64"),
        (I + 5, W, (3, 4), U, V, IndexError, r"\[0, 12\).*12"),
        (I - 2, W, (3, 4), U, V, IndexError, r"\[0, 12\).*-1"),
        (I.flip(0), W, (3, 4), U, V, ValueError, "ascending"),
        (I // 4, W, (3, 4), U, V, ValueError, "each once"),
    ],
)
def test_bad_input(
    indices: Tensor,
    values: Tensor,
    shape: tuple[int, ...],
    u: Tensor,
    v: Tensor,
    error: type[Exception],
    message: str,
):
    with pytest.raises(error, match=message):
        project_sparse(indices, values, shape, u, v)


def test_order_is_checked_across_parts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("rlforget_kernels.common.checks._CHECKED", 2)
    for wrong in ([0, 1, 1, 2], [0, 2, 1, 3], [0, 1, 3, 2]):
        with pytest.raises(ValueError, match="ascending"):
            project_sparse(torch.tensor(wrong), torch.ones(4), (3, 4), U, V)
    project_sparse(torch.tensor([0, 1, 2, 3]), torch.ones(4), (3, 4), U, V)
