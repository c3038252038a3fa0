from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlforget_kernels.low_rank import LowRank, gaussian, low_rank
from tests.kernels.matrices import CPU_WORK, norm, pair
from tests.kernels.strategies import LAYOUTS, generator, laid_out, same_bits, seeds

ROUNDING = {False: 2e-5, True: 1e-12}


def decaying(shape: tuple[int, int], rank: int, decay: float, seed: int) -> Tensor:
    """A float64 matrix of that rank; singular values fall from about 1 by a factor of `decay`."""
    random = generator(seed)
    sides = [torch.linalg.qr(torch.randn(rows, rank, generator=random, dtype=torch.float64))[0] for rows in shape]
    values = decay ** torch.arange(rank, dtype=torch.float64)
    return sides[0] @ torch.diag(values) @ sides[1].T


def difference(before: Tensor, after: Tensor) -> Tensor:
    return after.double() - before.double()


def assert_valid(found: LowRank, delta: Tensor, rank: int, float64: bool) -> None:
    """Orthonormal bases, values in order, and bounds that bound."""
    rounding = ROUNDING[float64]
    for side in (found.u, found.v):
        assert side.dtype is (torch.float64 if float64 else torch.float32)
        assert norm(side.T @ side - torch.eye(rank)) <= rounding * rank
    assert (found.s[:-1] >= found.s[1:]).all()
    assert (found.s >= 0).all()
    left = delta - found.u.double() @ torch.diag(found.s.double()) @ found.v.double().T
    assert norm(left) <= found.error_bound[0]
    assert torch.linalg.matrix_norm(left, 2) <= found.error_bound[1] + rounding * norm(delta)
    assert found.error_bound[1] <= found.error_bound[0]


@given(
    shape=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    share=st.floats(0, 1),
    work=st.sampled_from(CPU_WORK),
    layouts=st.tuples(*[st.sampled_from(LAYOUTS)] * 2),
    change=st.sampled_from([0.0, 0.01, 1.0]),
    seed=seeds,
    iterations=st.integers(0, 2),
)
@settings(max_examples=60)
def test_any_difference(
    shape: tuple[int, int],
    share: float,
    work: tuple[torch.dtype, bool],
    layouts: tuple[str, str],
    change: float,
    seed: int,
    iterations: int,
):
    dtype, float64 = work
    rank = max(1, int(share * min(shape)))
    before, after = pair(dtype, shape, seed, change)
    delta = difference(before, after)
    sides = [laid_out(before, layouts[0])], [laid_out(after, layouts[1])]
    (found,) = low_rank(*sides, rank, iterations=iterations, seed=seed, float64=float64)
    assert_valid(found, delta, rank, float64)
    if rank == min(shape):  # everything was searched
        exact = torch.linalg.svdvals(delta)
        assert (found.s.double() - exact).abs().max() <= ROUNDING[float64] * norm(delta)


@pytest.mark.parametrize("float64", [False, True])
@pytest.mark.parametrize("shape", [(300, 200), (60, 400)])
def test_a_difference_of_low_rank_is_found_exactly(shape: tuple[int, int], float64: bool):
    delta = decaying(shape, 10, 0.5, 0)
    (found,) = low_rank([torch.zeros(shape, dtype=torch.float64)], [delta], 10, float64=float64)
    assert_valid(found, delta, 10, float64)
    left = delta - found.u.double() @ torch.diag(found.s.double()) @ found.v.double().T
    assert norm(left) <= ROUNDING[float64] * norm(delta)
    exact = torch.linalg.svd(delta, full_matrices=False)
    if float64:
        along = (exact.U[:, :10] * found.u).sum(0)
        assert torch.allclose(along.abs(), torch.ones(10, dtype=torch.float64), atol=1e-9)


def test_leading_triplets_of_a_full_difference():
    delta = decaying((200, 150), 150, 0.9, 0)
    before = torch.zeros(200, 150)
    exact = torch.linalg.svdvals(delta.float().double())
    errors = []
    for iterations in (0, 1, 3):
        (found,) = low_rank([before], [delta.float()], 12, iterations=iterations)
        assert_valid(found, delta.float().double(), 12, False)
        errors.append(float((found.s.double() - exact[:12]).abs().max() / exact[0]))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] <= 1e-4
    best = norm(exact[12:])
    assert best <= found.error_bound[0] <= 1.02 * best
    assert exact[12] <= found.error_bound[1]


def test_bounds_are_not_far_off():
    delta = decaying((300, 300), 300, 0.8, 1)
    (found,) = low_rank([torch.zeros_like(delta)], [delta], 20, float64=True)
    left = delta - found.u @ torch.diag(found.s) @ found.v.T
    assert found.error_bound[0].item() == pytest.approx(norm(left), rel=1e-6)
    assert found.error_bound[1] <= 30 * torch.linalg.matrix_norm(left, 2)


def test_no_difference_and_ranks_that_are_not_there():
    same = torch.randn(40, 30, generator=generator(0)).bfloat16()
    thin = torch.zeros(40, 30, dtype=torch.bfloat16)
    thin[:, 3] = 1
    none, one = low_rank([same, torch.zeros_like(thin)], [same, thin], 5)
    assert none.s.tolist() == [0.0] * 5
    assert none.error_bound.tolist() == [0.0, 0.0]
    assert one.s[0].item() == pytest.approx(40**0.5, rel=1e-6)
    assert (one.s[1:] <= 1e-5).all()
    assert one.v[3, 0].abs().item() == pytest.approx(1, abs=1e-6)
    for found, delta in ((none, torch.zeros(40, 30)), (one, thin)):
        assert_valid(found, delta.double(), 5, False)


def test_lists_give_what_single_pairs_give(monkeypatch: pytest.MonkeyPatch):
    pairs = [pair(torch.float32, shape, k) for k, shape in enumerate([(40, 30), (40, 30), (20, 30)])]
    before, after = map(list, zip(*pairs, strict=True))
    together = low_rank(before, after, 4, seed=3)
    monkeypatch.setattr("rlforget_kernels.low_rank._STORED", 1)
    apart = low_rank(before, after, 4, seed=3)
    for k in range(3):
        (single,) = low_rank([before[k]], [after[k]], 4, seed=3)
        assert all(same_bits(one, other) for one, other in zip(apart[k], single, strict=True))
        assert torch.allclose(together[k].s, single.s, rtol=1e-5)
        assert torch.allclose(together[k].u, single.u, atol=1e-3)


def test_signs_are_settled():
    before, after = pair(torch.float32, (30, 20), 0)
    (found,) = low_rank([before], [after], 5)
    largest = found.u.gather(0, found.u.abs().argmax(0, keepdim=True))
    assert (largest > 0).all()


def test_test_matrix_is_normal_and_a_function_of_its_coordinates():
    drawn = gaussian(20_000, 5, 7, True)
    assert abs(drawn.mean()) <= 5 / 100_000**0.5
    assert abs(drawn.std() - 1) <= 5 / 200_000**0.5
    assert abs(drawn.pow(4).mean() - 3) <= 5 * 96**0.5 / 100_000**0.5
    assert norm(torch.corrcoef(drawn.T) - torch.eye(5)) <= 0.1
    assert same_bits(gaussian(20_000, 3, 7, True).contiguous(), drawn[:, :3].contiguous())
    assert same_bits(gaussian(20_000, 5, 7, False).contiguous(), drawn.float().contiguous())
    assert not torch.equal(gaussian(20_000, 5, 8, True), drawn)


A = torch.ones(6, 4)


@pytest.mark.parametrize(
    ("before", "after", "arguments", "error", "message"),
    [
        ([A], [A], {"rank": 5}, ValueError, r"rank from 1 to 4, the smaller side of before\[0\]; found 5"),
        ([A], [A], {"rank": 0}, ValueError, "found 0"),
        ([A, A[:0]], [A, A[:0]], {"rank": 1}, ValueError, r"rank from 1 to 0.*before\[1\]"),
        ([A], [A], {"rank": 1, "oversampling": 250}, ValueError, "at most 246; found 250 with rank 1"),
        ([A], [A], {"rank": 1, "oversampling": -1}, ValueError, "found -1"),
        ([A], [A], {"rank": 1, "iterations": -1}, ValueError, "iterations >= 0; found -1"),
        ([A], [A.half()], {"rank": 1}, TypeError, "float16"),
        ([A], [], {"rank": 1}, ValueError, "1 before, 0 after"),
        ([A, A], [A, A * float("nan")], {"rank": 1}, ValueError, r"before\[1\], after\[1\].*finite"),
        ([A, A], [A, A / 0], {"rank": 1}, ValueError, r"after\[1\].*finite"),
    ],
)
def test_bad_input(
    before: list[Tensor], after: list[Tensor], arguments: dict[str, int], error: type[Exception], message: str
):
    with pytest.raises(error, match=message):
        low_rank(before, after, **arguments)
