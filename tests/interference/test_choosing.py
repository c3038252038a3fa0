"""μ and λ on held-out rows: against corrections fitted and asked by hand, and where the answer is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rlforget.errors import ConfigError
from rlforget.interference.choosing import LAM_GRID, MU_GRID, Problem, choose, held_out, solve


def problem(g_a: Tensor, g_b: Tensor, change: Tensor) -> Problem:
    stack = torch.cat([g_a, g_b])
    fold = torch.cat([torch.arange(len(g_a)), torch.arange(len(g_b))])
    return Problem(stack @ stack.T, g_a @ change, g_b @ change if len(g_b) else None, fold)


def drawn(n: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    g_a, g_b = (torch.randn(n, width, generator=generator, dtype=torch.float64) for _ in range(2))
    return g_a, g_b, torch.randn(width, generator=generator, dtype=torch.float64)


def test_solution_is_that_of_weight_space() -> None:
    g_a, g_b, change = drawn(5, 12)
    x, reached = solve(problem(g_a, g_b, change).product, g_a @ change, mu=0.1, lam=2.5)
    u = torch.cat([g_a, g_b]).T @ x
    ridge = 0.1 * g_a.square().sum(1).mean()
    hessian = g_a.T @ g_a + 2.5 * g_b.T @ g_b + ridge * torch.eye(12, dtype=torch.float64)
    torch.testing.assert_close(u, torch.linalg.solve(hessian, g_a.T @ (g_a @ change)))
    torch.testing.assert_close(reached, torch.cat([g_a, g_b]) @ u)


def test_held_out_rows_are_asked_of_a_correction_fitted_without_them() -> None:
    g_a, g_b, change = drawn(8, 30)
    damage = side_effect = 0.0
    for out in range(4):
        fit = torch.arange(8) % 4 != out
        x, _ = solve(problem(g_a[fit], g_b[fit], change).product, g_a[fit] @ change, mu=0.01, lam=0.5)
        u = torch.cat([g_a[fit], g_b[fit]]).T @ x
        damage += float((g_a[~fit] @ (change - u)).square().sum())
        side_effect += float((g_b[~fit] @ u).square().sum())
    expected = damage / float((g_a @ change).square().sum()) + side_effect / float((g_b @ change).square().sum())
    assert held_out(problem(g_a, g_b, change), 0.01, 0.5) == pytest.approx(expected)


def test_rows_of_few_directions_want_little_ridge_and_noise_wants_much() -> None:
    generator = torch.Generator().manual_seed(1)
    few = torch.randn(3, 200, generator=generator, dtype=torch.float64)
    change = torch.randn(200, generator=generator, dtype=torch.float64)
    g_a = torch.randn(40, 3, generator=generator, dtype=torch.float64) @ few
    none = torch.empty(0, 200, dtype=torch.float64)
    clean, _ = choose(problem(g_a, none, change), "auto", 1.0)
    apart, _, wide = drawn(40, 4000)
    noise, _ = choose(problem(apart, torch.empty(0, 4000, dtype=torch.float64), wide), "auto", 1.0)
    assert clean == MU_GRID[0]
    assert noise >= 0.1


def test_lam_grows_where_the_domains_share_directions() -> None:
    generator = torch.Generator().manual_seed(2)
    few = torch.randn(4, 100, generator=generator, dtype=torch.float64)
    g_a = torch.randn(40, 4, generator=generator, dtype=torch.float64) @ few
    g_b = torch.randn(40, 4, generator=generator, dtype=torch.float64) @ few
    # What hurts A is what B needs: whatever is regained is lost, and the two shares are traded one for one.
    mu, lam = choose(problem(g_a, g_b, few.sum(0)), "auto", "auto")
    assert mu in MU_GRID
    assert lam in LAM_GRID
    assert held_out(problem(g_a, g_b, few.sum(0)), mu, lam) == min(
        held_out(problem(g_a, g_b, few.sum(0)), mu, one) for one in LAM_GRID
    )


def test_numbers_stay() -> None:
    g_a, g_b, change = drawn(4, 10)
    assert choose(problem(g_a, g_b, change), 0.3, 0.7) == (0.3, 0.7)


def test_one_prompt_cannot_be_split() -> None:
    g_a, g_b, change = drawn(1, 10)
    with pytest.raises(ConfigError, match="two prompts"):
        choose(problem(g_a, g_b, change), "auto", 1.0)
