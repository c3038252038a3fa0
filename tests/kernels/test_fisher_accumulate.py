from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlforget_kernels import fisher_accumulate as package
from rlforget_kernels.fisher_accumulate import (
    cpu,
    fisher_accumulate_,
    foreach_fisher_accumulate_,
    gpu,
    reference,
)
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


def accumulated(backend: ModuleType, fisher: Tensor, *args: Tensor | None, layout: str = "contiguous") -> Tensor:
    """The Fisher after the operator ran on a copy of it."""
    fisher = laid_out(fisher, layout)
    use(backend)(fisher, *args)
    return fisher


def use(backend: ModuleType) -> Callable[..., None]:
    """The single operator as `backend` does it."""

    def accumulate(fisher: Tensor, gradient: Tensor, indices: Tensor | None = None) -> None:
        backend.foreach_fisher_accumulate_([fisher], [gradient], [indices])

    return reference.fisher_accumulate_ if backend is reference else accumulate


@BACKENDS
@given(dtype=st.sampled_from(FLOATS), shape=shapes, seed=seeds, layouts=st.tuples(*[st.sampled_from(LAYOUTS)] * 2))
@settings(max_examples=40)
def test_dense(backend: ModuleType, dtype: torch.dtype, shape: tuple[int, ...], seed: int, layouts: tuple[str, str]):
    gradient = laid_out(random_tensor(dtype, shape, seed), layouts[0])
    fisher = random_tensor(torch.float32, shape, seed + 1)
    expected = accumulated(reference, fisher, gradient)
    assert same_bits(accumulated(backend, fisher, gradient, layout=layouts[1]), expected)


@BACKENDS
@given(
    dtype=st.sampled_from(FLOATS),
    shape=shapes,
    density=st.sampled_from([0.0, 0.01, 0.5, 1.0]),
    seed=seeds,
    index_dtype=st.sampled_from([torch.int32, torch.int64]),
    layouts=st.tuples(*[st.sampled_from(LAYOUTS)] * 3),
)
@settings(max_examples=40)
def test_gathered(
    backend: ModuleType,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    density: float,
    seed: int,
    index_dtype: torch.dtype,
    layouts: tuple[str, str, str],
):
    gradient = laid_out(random_tensor(dtype, shape, seed), layouts[0])
    chosen = torch.rand(gradient.numel(), generator=generator(seed)) < density
    indices = laid_out(chosen.nonzero()[:, 0].to(index_dtype), layouts[1])
    fisher = random_tensor(torch.float32, tuple(indices.shape), seed + 1)
    expected = accumulated(reference, fisher, gradient, indices)
    assert same_bits(accumulated(backend, fisher, gradient, indices, layout=layouts[2]), expected)


@BACKENDS
@given(
    kinds=st.lists(
        st.tuples(st.sampled_from(FLOATS), shapes, st.sampled_from(LAYOUTS), st.sampled_from([None, 0.0, 0.3])),
        max_size=5,
    ),
    seed=seeds,
)
@settings(max_examples=30)
def test_many_fishers_at_once(
    backend: ModuleType, kinds: list[tuple[torch.dtype, tuple[int, ...], str, float | None]], seed: int
):
    gradients = [laid_out(random_tensor(dtype, shape, seed), layout) for dtype, shape, layout, _ in kinds]
    indices = [
        None if share is None else (torch.rand(one.numel(), generator=generator(seed)) < share).nonzero()[:, 0]
        for one, (*_, share) in zip(gradients, kinds, strict=True)
    ]
    fishers = [
        random_tensor(torch.float32, tuple(one.shape if where is None else where.shape), seed + 1)
        for one, where in zip(gradients, indices, strict=True)
    ]
    expected = [accumulated(reference, *arguments) for arguments in zip(fishers, gradients, indices, strict=True)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(package, "backend", lambda _, *tensors: backend)
        foreach_fisher_accumulate_(fishers, gradients, indices)
    assert all(map(same_bits, fishers, expected))


@pytest.mark.parametrize("backend", [reference, cpu, gpu], ids=["reference", "cpu", "gpu"])
def test_square_and_sum_round_apart(backend: ModuleType):
    # (1 + 2**-23)**2 = 1 + 2**-22 + 2**-46: a fused multiply-add with -1 would keep the last term.
    gradient = torch.tensor([1 + 2.0**-23])
    assert accumulated(backend, torch.tensor([-1.0]), gradient).item() == 2.0**-22


def test_mean_over_samples_is_the_fisher():
    gradients = torch.randn(64, 1000, generator=generator(0))
    fisher = torch.zeros(1000)
    for gradient in gradients:
        fisher_accumulate_(fisher, gradient)
    torch.testing.assert_close(fisher / 64, gradients.square().mean(0))


def test_threads_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch):
    gradient, fisher = random_tensor(torch.bfloat16, (20_000,), 0), random_tensor(torch.float32, (20_000,), 1)
    expected = accumulated(reference, fisher, gradient)
    monkeypatch.setattr("rlforget_kernels.common.threads.GRAIN", 1000)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert same_bits(accumulated(cpu, fisher, gradient), expected)


@pytest.mark.parametrize("dtype", OPCHECK_FLOATS, ids=str)
@pytest.mark.parametrize("indices", [None, torch.tensor([1, 5, 7])], ids=["dense", "gathered"])
def test_opcheck(dtype: torch.dtype, indices: Tensor | None):
    fisher = torch.zeros(4, 5) if indices is None else torch.zeros(3)
    gradient = random_tensor(dtype, (4, 5), 0)
    torch.library.opcheck(torch.ops.rlforget.fisher_accumulate_.default, (fisher, gradient, indices))
    lists = ([fisher, fisher.clone()], [gradient] * 2, [indices] * 2)
    torch.library.opcheck(torch.ops.rlforget.foreach_fisher_accumulate_.default, lists)


@pytest.mark.parametrize(
    ("fisher", "gradient", "indices", "error", "message"),
    [
        (torch.zeros(3, dtype=torch.float64), torch.zeros(3), None, TypeError, "fisher"),
        (torch.zeros(3), torch.zeros(3, dtype=torch.int32), None, TypeError, "gradient"),
        (torch.zeros(3), torch.zeros(4), None, ValueError, "shape"),
        (torch.zeros(3), torch.zeros(4), torch.zeros(2, dtype=torch.int64), ValueError, "equal length"),
        (torch.zeros(3), torch.zeros(4), torch.zeros(3), TypeError, "indices"),
        (torch.zeros(3), torch.ones(4), torch.tensor([0, 1, 4]), IndexError, r"\[0, 4\)"),
        (torch.zeros(3), torch.ones(4), torch.tensor([0, -1, 2]), IndexError, "-1"),
    ],
)
def test_bad_input(fisher: Tensor, gradient: Tensor, indices: Tensor | None, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        fisher_accumulate_(fisher, gradient, indices)
    assert not fisher.any()


def test_lists_of_different_lengths():
    with pytest.raises(ValueError, match=r"\[1, 2, 1\]"):
        foreach_fisher_accumulate_([torch.zeros(2)], [torch.zeros(2)] * 2, [])
