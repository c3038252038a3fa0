from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlforget_kernels import subtract as package
from rlforget_kernels.common.bits import as_bits
from rlforget_kernels.subtract import cpu, foreach_subtract_, gpu, reference, subtract_
from tests.kernels.strategies import (
    FLOATS,
    LAYOUTS,
    OPCHECK_DTYPES,
    generator,
    laid_out,
    random_tensor,
    same_bits,
    seeds,
    shapes,
)

OPCHECK_FLOATS = tuple(dtype for dtype in OPCHECK_DTYPES if dtype.is_floating_point)
BACKENDS = pytest.mark.parametrize("backend", [cpu, gpu], ids=["cpu", "gpu"])
ALL = pytest.mark.parametrize("backend", [reference, cpu, gpu], ids=["reference", "cpu", "gpu"])
NARROW = tuple(dtype for dtype in FLOATS if dtype.itemsize < 4)


def subtracted(backend: ModuleType, weight: Tensor, *args: Any, layout: str = "contiguous") -> Tensor:
    """The weight after the operator ran on a copy of it."""
    weight = laid_out(weight, layout)
    use(backend)(weight, *args)
    return weight


def use(backend: ModuleType) -> Callable[..., None]:
    """The single operator as `backend` does it."""

    def subtract(weight: Tensor, u: Tensor, seed: int | None = None, offset: int = 0) -> None:
        backend.foreach_subtract_([weight], [u], seed, [offset])

    return reference.subtract_ if backend is reference else subtract


def ordered(floats: Tensor) -> Tensor:
    """Integers in the order of `floats`, neighbours one apart; both zeros are 0."""
    bits = as_bits(floats).long()
    return torch.where(bits < 0, -(bits - torch.iinfo(as_bits(floats).dtype).min), bits)


@BACKENDS
@given(
    dtype=st.sampled_from(FLOATS),
    shape=shapes,
    tensor_seed=seeds,
    layouts=st.tuples(*[st.sampled_from(LAYOUTS)] * 2),
    small=st.booleans(),
    seed=st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)),
    offset=st.sampled_from([0, 1, 999, 2**40]),
)
@settings(max_examples=80)
def test_backend_equals_reference(
    backend: ModuleType,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    tensor_seed: int,
    layouts: tuple[str, str],
    small: bool,
    seed: int | None,
    offset: int,
):
    weight = random_tensor(dtype, shape, tensor_seed)
    u = random_tensor(torch.float32, shape, tensor_seed + 1)
    u = laid_out(u * 2.0**-10 if small else u, layouts[0])
    expected = subtracted(reference, weight, u, seed, offset)
    assert same_bits(subtracted(backend, weight, u, seed, offset, layout=layouts[1]), expected)


@BACKENDS
@given(
    kinds=st.lists(st.tuples(st.sampled_from(FLOATS), shapes, st.sampled_from(LAYOUTS)), max_size=5),
    tensor_seed=seeds,
    seed=st.one_of(st.none(), seeds),
)
@settings(max_examples=30)
def test_many_weights_at_once(
    backend: ModuleType, kinds: list[tuple[torch.dtype, tuple[int, ...], str]], tensor_seed: int, seed: int | None
):
    weights = [laid_out(random_tensor(dtype, shape, tensor_seed), layout) for dtype, shape, layout in kinds]
    us = [laid_out(random_tensor(torch.float32, shape, tensor_seed + 1), layout) for _, shape, layout in kinds]
    offsets = [3 * k for k in range(len(kinds))]
    expected = [
        subtracted(reference, weight, u, seed, offset) for weight, u, offset in zip(weights, us, offsets, strict=True)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(package, "backend", lambda _, *tensors: backend)
        foreach_subtract_(weights, us, seed, offsets)
    assert all(map(same_bits, weights, expected))


def test_without_offsets_each_weight_follows_on_the_one_before():
    weights, us = random_tensor(torch.bfloat16, (3, 500), 0), random_tensor(torch.float32, (3, 500), 1)
    expected = subtracted(cpu, weights, us, 5)
    foreach_subtract_(list(weights), list(us), 5)
    assert same_bits(weights, expected)


@ALL
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_nearest_is_what_torch_rounds_to(backend: ModuleType, dtype: torch.dtype):
    weight = (torch.randn(4000, generator=generator(0)) * 2.0 ** torch.arange(-20, 20).repeat(100)).to(dtype)
    u = torch.randn(4000, generator=generator(1)) * 2.0 ** torch.arange(-20, 20).repeat(100).flip(0)
    if dtype is torch.float8_e4m3fn:  # beyond it, torch rounds to NaN or to 448, by version
        weight, u = weight.float().clamp(-400, 400).to(dtype), u.clamp(-40, 40)
    difference = weight.to(torch.float64) - u if dtype is torch.float64 else weight.to(torch.float32) - u
    found = subtracted(backend, weight, u)
    assert same_bits(found, difference.to(dtype))


@ALL
def test_what_is_too_large_for_float8(backend: ModuleType):
    u = -torch.tensor([449.0, 463.9, 464.0, 480.0, 1e9, float("inf"), -1e9])
    found = subtracted(backend, torch.zeros(7, dtype=torch.float8_e4m3fn), u)
    assert found.float().tolist() == [448.0] * 6 + [-448.0]
    u = -torch.tensor([57345.0, 61439.0, 61440.0, 1e9, -1e9, float("inf")])
    found = subtracted(backend, torch.zeros(6, dtype=torch.float8_e5m2), u)
    assert found.float().tolist() == u.neg().to(torch.float8_e5m2).float().tolist()
    assert found.float().tolist()[2:] == [float("inf"), float("inf"), -float("inf"), float("inf")]


def test_float8_overflow_is_that_of_torch_where_torch_saturates():
    large = torch.tensor([449.0, 464.0, 465.0, 480.0, 1e9, -1e9])
    by_torch = large.to(torch.float8_e4m3fn)
    if by_torch.float().isnan().any():
        pytest.skip("this torch writes NaN for what float8_e4m3fn cannot hold")
    weight = torch.zeros(6, dtype=torch.float8_e4m3fn)
    subtract_(weight, -large)
    assert same_bits(weight, by_torch)


@pytest.mark.parametrize("dtype", NARROW, ids=str)
@pytest.mark.parametrize("kind", ["normal", "tiny u", "subnormal", "crossing zero", "up to the largest"])
def test_stochastic_rounding_is_unbiased(dtype: torch.dtype, kind: str):
    draws = 10_000_000
    smallest = 2.0 ** -(9 if dtype is torch.float8_e4m3fn else 16 if dtype is torch.float8_e5m2 else 24)
    if dtype is torch.bfloat16:
        smallest = 2.0**-100
    top = torch.finfo(dtype).max
    below_top = (as_bits(torch.tensor(top).to(dtype)) - 1).view(dtype).item()
    start, change = {
        "normal": (1.25, 0.0123),
        "tiny u": (1.0, 1e-5),
        "subnormal": (3 * smallest, 0.3 * smallest),
        "crossing zero": (smallest, 1.4 * smallest),
        "up to the largest": (below_top, 0.3 * (below_top - top)),
    }[kind]
    weight = torch.full((draws,), start).to(dtype)
    exact = (weight[0].float() - torch.tensor(change)).double()
    subtract_(weight, torch.full((draws,), change), seed=11)
    lower, upper = as_bits(weight).unique().view(dtype).double().sort().values  # the two neighbours
    chance = (exact - lower) / (upper - lower)
    found = (as_bits(weight) == as_bits(upper.to(dtype))).double().mean()
    assert 0 < chance < 1
    assert (found - chance).abs() <= 5 * (chance * (1 - chance) / draws) ** 0.5


@ALL
@given(dtype=st.sampled_from(NARROW), seed=seeds)
@settings(max_examples=15)
def test_stochastic_result_is_a_neighbour(backend: ModuleType, dtype: torch.dtype, seed: int):
    weight = torch.randn(1000, generator=generator(seed)).to(dtype)
    u = torch.randn(1000, generator=generator(seed + 1)) * 0.01
    difference = (weight.float() - u).double()
    nearest, found = subtracted(backend, weight, u), subtracted(backend, weight, u, seed)
    assert ((ordered(found) - ordered(nearest)).abs() <= 1).all()
    # Both sides of the difference where they are not one and the same, and exact where it can be.
    assert (
        ((found.double() - difference) * (nearest.double() - difference) <= 0)
        .logical_or(ordered(found) == ordered(nearest))
        .all()
    )
    exact = difference == nearest.double()
    assert torch.equal(found.double()[exact], difference[exact])


@ALL
@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_chance_makes_no_infinity(backend: ModuleType, dtype: torch.dtype):
    top = torch.finfo(dtype).max
    weight = torch.full((5000,), top).to(dtype)
    u = torch.full((5000,), -top * 2.0**-12)
    assert (subtracted(backend, weight, u, 5).float() == top).all()
    assert (subtracted(backend, torch.full((5000,), -top).to(dtype), -u, 5).float() == -top).all()


def test_random_bits_follow_the_coordinate_alone():
    weight, u = torch.ones(10_000, dtype=torch.bfloat16), torch.full((10_000,), 1e-3)
    whole = subtracted(cpu, weight, u, 7)
    tail = subtracted(cpu, weight[6_000:], u[6_000:], 7, 6_000)
    assert same_bits(tail, whole[6_000:])
    assert same_bits(subtracted(cpu, weight, u, 7), whole)
    assert not same_bits(subtracted(cpu, weight, u, 8), whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_seed_changes_nothing_for_wide_weights(dtype: torch.dtype):
    weight, u = random_tensor(dtype, (1000,), 0), random_tensor(torch.float32, (1000,), 1)
    assert same_bits(subtracted(cpu, weight, u, 3), subtracted(cpu, weight, u))


def test_threads_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch):
    weight, u = random_tensor(torch.bfloat16, (20_000,), 0), random_tensor(torch.float32, (20_000,), 1)
    expected = subtracted(reference, weight, u, 3)
    monkeypatch.setattr("rlforget_kernels.common.threads.GRAIN", 1000)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert same_bits(subtracted(cpu, weight, u, 3), expected)


@pytest.mark.parametrize("dtype", OPCHECK_FLOATS, ids=str)
@pytest.mark.parametrize("seed", [None, 3])
def test_opcheck(dtype: torch.dtype, seed: int | None):
    weight, u = random_tensor(dtype, (4, 5), 0), torch.rand(4, 5, generator=generator(0))
    torch.library.opcheck(torch.ops.rlforget.subtract_.default, (weight, u, seed, 5))
    lists = ([weight, weight.clone()], [u, u])
    torch.library.opcheck(torch.ops.rlforget.foreach_subtract_.default, (*lists, seed, [0, 9]))


@pytest.mark.parametrize(
    ("weight", "u", "error", "message"),
    [
        (torch.ones(3).int(), torch.ones(3), TypeError, "weight"),
        (torch.ones(3), torch.ones(3).half(), TypeError, "u"),
        (torch.ones(3), torch.ones(4), ValueError, r"\(3,\).*\(4,\)"),
        (torch.ones(3).cfloat(), torch.ones(3), TypeError, "complex64"),
    ],
)
def test_bad_input(weight: Tensor, u: Tensor, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        subtract_(weight, u)
    assert (weight == 1).all()


def test_lists_of_different_lengths():
    with pytest.raises(ValueError, match=r"\[2, 1, 2\]"):
        foreach_subtract_([torch.ones(2)] * 2, [torch.ones(2)])
