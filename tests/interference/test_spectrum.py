"""The measured subspace against singular value decompositions of the gradients, written out in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rlforget.delta import Delta, diff
from rlforget.errors import ConfigError, NothingLostError, WrongBaseError
from rlforget.interference import MeasuredSubspace, measure_subspace
from rlforget.interference.measured_subspace import CUTOFF

from .conftest import tiny_model
from .test_subspace import at, flat, jacobian

Make = Callable[..., list[dict[str, Tensor]]]
Setting = tuple[nn.Module, Delta, list[Any], list[Any]]


@pytest.fixture
def setting(after: nn.Module, delta: Delta, completions: Make) -> Setting:
    return after, delta, completions(6, seed=1), completions(5, seed=2)


def parts(setting: Setting, before: nn.Module) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """G_A at the midpoint, G_B now, the weights now and δ."""
    after, _, a, b = setting
    old, now = (flat(model.parameters()) for model in (before, after))
    return jacobian(at((old + now) / 2), a), jacobian(at(now), b), now, now - old


def test_it_is_the_singular_value_decomposition(setting: Setting, before: nn.Module, untouched: Any) -> None:
    after, delta, a, b = setting
    g_a, g_b, now, change = parts(setting, before)
    held: list[np.ndarray] = []

    def evaluate() -> float:
        held.append(flat(after.parameters()))
        return float(len(held))

    check = untouched(after)
    found = measure_subspace(after, delta, [a], [b], counts=[1, 3, 99], evaluate=evaluate)
    check()
    _, s, v = np.linalg.svd(g_a, full_matrices=False)
    np.testing.assert_allclose(found.restore.eigenvalues, s**2, rtol=1e-3, atol=1e-5 * s[0] ** 2)
    assert found.restore.rank == int((s**2 > CUTOFF * s[0] ** 2).sum()) == 6
    assert found.restore.participation_ratio == pytest.approx((s**2).sum() ** 2 / (s**4).sum(), rel=1e-3)
    p = s**2 / (s**2).sum()
    assert found.restore.effective_rank == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-3)
    target = g_a @ change
    assert found.damage == pytest.approx(np.linalg.norm(target), rel=1e-3)
    carried = (s * (v @ change)) ** 2 / (target**2).sum()
    np.testing.assert_allclose(found.shares, carried, rtol=1e-2, atol=1e-4)
    w = np.linalg.svd(g_b, full_matrices=False)[2]
    angles = np.arccos(np.linalg.svd(v @ w.T)[1].clip(0, 1))
    np.testing.assert_allclose(found.angles, angles, atol=2e-2)
    assert found.overlap == pytest.approx(float((np.cos(angles) ** 2).mean()), abs=1e-2)
    assert found.overlap_by_chance == pytest.approx(6 / len(change))

    order = np.argsort(-carried)
    for curve, by, start in ((found.by_share, order, 0), (found.by_eigenvalue, np.arange(6), 3)):
        assert [point.directions for point in curve] == [1, 3, 6]
        for number, point in enumerate(curve):
            basis = v[by[: point.directions]]
            u = basis.T @ (basis @ change)
            assert point.explained == pytest.approx(carried[by[: point.directions]].sum(), abs=1e-3)
            assert point.norm_share == pytest.approx(np.linalg.norm(u) / np.linalg.norm(change), rel=1e-2)
            assert point.side_effect == pytest.approx(np.linalg.norm(g_b @ u), rel=1e-2, abs=1e-4)
            assert point.measured == start + number + 1
            np.testing.assert_allclose(held[start + number], now - u, atol=1e-4)
        assert curve[-1].explained == pytest.approx(1.0, abs=1e-6)
    assert found.by_share[0].explained >= found.by_eigenvalue[0].explained
    for number, point in enumerate(found.random):
        u = now - held[6 + number]
        assert point.norm_share == pytest.approx(np.linalg.norm(u) / np.linalg.norm(change), rel=1e-3)
        left = np.linalg.norm(g_a @ (change - u)) ** 2 / (target**2).sum()
        assert point.explained == pytest.approx(1 - left, abs=1e-2)
        assert abs(point.explained) < 0.3
        # k of N directions at random hold about k/N of the square of the norm
        assert point.norm_share < 4 * (point.directions / len(change)) ** 0.5
    assert len(held) == 9


def test_how_few_directions_carry_a_share(setting: Setting) -> None:
    after, delta, a, _ = setting
    found = measure_subspace(after, delta, [a])
    assert found.protect is None
    assert found.angles == ()
    assert [point.directions for point in found.by_share] == [1, 2, 4, 6]
    assert all(point.measured is None and point.side_effect == 0.0 for point in found.by_share)
    for by, ordered in (("share", sorted(found.shares, reverse=True)), ("eigenvalue", list(found.shares))):
        count = found.directions_for(0.9, by=by)
        assert count is not None
        assert sum(ordered[:count]) >= 0.9
        assert count == 1 or sum(ordered[: count - 1]) < 0.9
        assert found.to_dict()["directions_for_90_percent"][by] == count
    assert MeasuredSubspace(*[None] * 3, (0.5, 0.2), *[None] * 6).directions_for(0.9) is None  # type: ignore[arg-type]


def test_directions_that_the_rows_repeat_are_left_out(setting: Setting) -> None:
    after, delta, a, b = setting
    found = measure_subspace(after, delta, [a, a], [a])
    assert found.restore.rank == 6
    assert len(found.restore.eigenvalues) == 12
    assert found.by_share[-1].directions == 6
    assert found.by_share[-1].explained == pytest.approx(1.0, abs=1e-3)
    # What is protected is what is restored, taken at other weights: nearly the same span.
    apart = measure_subspace(after, delta, [a], [b])
    assert found.overlap > apart.overlap


def test_the_streamed_form_measures_the_same(setting: Setting) -> None:
    after, delta, a, b = setting
    plain, streamed = (measure_subspace(after, delta, [a], [b], form=form, block=4) for form in ("plain", "streamed"))
    np.testing.assert_allclose(streamed.restore.eigenvalues, plain.restore.eigenvalues, rtol=1e-3)
    np.testing.assert_allclose(streamed.angles, plain.angles, atol=1e-2)
    for ours, theirs in ((streamed.by_share, plain.by_share), (streamed.random, plain.random)):
        for one, other in zip(ours, theirs, strict=True):
            assert one.explained == pytest.approx(other.explained, abs=2e-3)
            assert one.side_effect == pytest.approx(other.side_effect, rel=1e-2, abs=1e-4)


def test_a_fault_while_evaluating_puts_the_bits_back(setting: Setting, untouched: Any) -> None:
    after, delta, a, _ = setting
    check = untouched(after)

    def broken() -> float:
        raise RuntimeError("no reward")

    with pytest.raises(RuntimeError, match="no reward"):
        measure_subspace(after, delta, [a], evaluate=broken)
    check()


def test_what_is_refused(setting: Setting, before: nn.Module, completions: Make) -> None:
    after, delta, a, _ = setting
    for counts in ([], [0], [3, -1]):
        with pytest.raises(ConfigError, match="counts"):
            measure_subspace(after, delta, [a], counts=counts)
    with pytest.raises(ConfigError, match="restore"):
        measure_subspace(after, delta, [])
    with pytest.raises(WrongBaseError):
        measure_subspace(before, delta, [a])
    old, now = tiny_model(tied=False), tiny_model(tied=False)
    with torch.no_grad():
        now.model.embed_tokens.weight[12] += 1.0
    with pytest.raises(NothingLostError):  # a token that no completion has
        measure_subspace(now, diff(old, now), [completions(4, vocabulary=12)])
    with pytest.raises(ConfigError, match="delta"):
        measure_subspace(old, diff(old, old), [a])
