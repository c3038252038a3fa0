"""The fewest coordinates: the solution of a small program, and what it undoes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rlforget.delta import Delta
from rlforget.errors import ConfigError, CoordinateError
from rlforget.interference import conflict, conflict_subspace
from rlforget.interference.fewest_coordinates import _projected, _shares, fewest
from rlforget.interference.gradient_stack import GradientStack
from rlforget.recovery import rollback

Batch = dict[str, Tensor]
Make = Callable[..., list[Batch]]


def test_projection_is_the_nearest_point() -> None:
    values = torch.tensor([2.0, 0.9, 0.3, -1.0, 0.6])
    found = _projected(values, 2)
    assert float(found.sum()) == pytest.approx(2.0)
    assert bool(((found >= 0) & (found <= 1)).all())
    generator = torch.Generator().manual_seed(0)
    others = _projected(torch.randn(200, 5, generator=generator).flatten(), 300).view(200, 5)
    feasible = others[others.sum(1) <= 2]
    assert len(feasible) > 20
    assert float((feasible - values).norm(dim=1).min()) >= float((found - values).norm()) - 1e-6
    assert _projected(torch.tensor([0.2, -0.5, 3.0]), 2).tolist() == pytest.approx([0.2, 0.0, 1.0])


def test_shares_solve_the_program() -> None:
    """Optimality: along the feasible set no coordinate that gains is left out for one that gains less."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(12, 40, generator=generator)
    change = torch.randn(40, generator=generator)
    space = GradientStack(rows, 8)
    shares = _shares(space, change, 10, lam=0.5, steps=3000)
    g_a, g_b, d, p = rows[:8].double(), rows[8:].double(), change.double(), shares.double()
    gradient = d * (g_a.T @ (g_a @ (d * p - d)) + 0.5 * g_b.T @ (g_b @ (d * p)))
    price = float(-gradient[(p > 0.01) & (p < 0.99)].mean())  # of a unit of the budget
    assert float(p.sum()) == pytest.approx(10, abs=1e-3)
    assert price > 0
    assert bool((-gradient[p > 0.99] > price - 0.05 * price).all())
    assert bool((-gradient[p < 0.01] < price + 0.05 * price).all())
    assert float(((p > 0.01) & (p < 0.99)).sum()) <= 12  # no more than rows


def damage_left(model: nn.Module, delta: Delta, chosen: Any, batches: list[Batch], before: nn.Module) -> float:
    from rlforget.interference.completions import completion_log_probs

    model.eval()
    with torch.no_grad(), rollback(model, delta, chosen):
        return float(
            torch.cat([completion_log_probs(model, b) - completion_log_probs(before.eval(), b) for b in batches]).norm()
        )


def test_undoes_more_than_the_best_score_at_as_many(
    before: nn.Module, after: nn.Module, delta: Delta, completions: Make, untouched: Any
) -> None:
    batches = completions(8)
    check = untouched(after)
    few = fewest(after, delta, [batches], count=40)
    check()
    assert 0 < few.count <= 40
    few.positions(delta)
    subspace = conflict_subspace(after, delta, [batches])
    left = damage_left(after, delta, few, batches, before)
    for scored in (
        conflict(delta, subspace=subspace),
        conflict(delta, score="magnitude"),
        conflict(delta, score="random"),
    ):
        assert left < damage_left(after, delta, scored.top(count=40), batches, before)


def test_streamed_finds_the_same(after: nn.Module, delta: Delta, completions: Make) -> None:
    plain, streamed = (
        fewest(after, delta, [completions(4)], [completions(4, seed=1)], count=30, steps=8, form=form)
        for form in ("plain", "streamed")
    )
    same = sum(len(set(plain[n].tolist()) & set(streamed[n].tolist())) for n in plain if n in streamed)
    assert same >= 0.9 * max(plain.count, streamed.count)


def test_what_is_refused(after: nn.Module, delta: Delta, completions: Make) -> None:
    for arguments in ({"count": 3, "fraction": 0.1}, {}, {"count": 10**9}, {"fraction": 0.0}):
        with pytest.raises(CoordinateError):
            fewest(after, delta, [completions(2)], **arguments)  # type: ignore[arg-type]
    for name, value in {"lam": "auto", "steps": 0}.items():
        with pytest.raises(ConfigError, match=name):
            fewest(after, delta, [completions(2)], count=3, **{name: value})  # type: ignore[arg-type]
