"""The soft rule against the minimiser that it is said to be, and Fishers of several domains."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from rlforget.delta import Delta, diff
from rlforget.errors import ConfigError, LayoutError, NonFiniteError
from rlforget.interference import Fisher, combine_fishers, soft_rule

from .test_scores import joined, random_fisher, some, weights


@pytest.fixture
def delta() -> Delta:
    base = weights(0)
    return diff(base, some(base, 1))


def of(values: list[float]) -> tuple[Delta, Fisher]:
    before, after = {"w": torch.zeros(len(values))}, {"w": torch.ones(len(values))}
    return diff(before, after), Fisher({"w": torch.tensor(values)}, {"w": torch.zeros(len(values))}, 1)


@given(
    st.floats(0.125, 1000, width=32),
    st.floats(0.125, 1000, width=32),
    st.floats(0.01, 100),
    st.floats(0.1, 10) | st.floats(-10, -0.1),
)
def test_the_share_minimises_what_is_lost_on_both_sides(a: float, b: float, lam: float, change: float) -> None:
    delta, earlier = of([a])
    rule = soft_rule(delta, earlier=earlier, later=of([b])[1], lam=lam)

    def lost(u: float) -> float:
        return 0.5 * a * (change - u) ** 2 + 0.5 * lam * b * u**2

    best = minimize_scalar(lost, bracket=(0.0, change)).x
    assert float(rule.shares["w"]) * change == pytest.approx(best, rel=1e-3, abs=1e-4)


def test_extremes() -> None:
    delta, earlier = of([0.0, 0.0, 1.0, 1e-30])
    later = of([0.0, 1.0, 0.0, 1e-30])[1]
    assert soft_rule(delta, earlier=earlier, later=later).shares["w"].tolist() == [0.0, 0.0, 1.0, 0.5]
    assert soft_rule(delta, earlier=earlier, later=later, lam=0.0).shares["w"].tolist() == [0.0, 0.0, 1.0, 1.0]


def test_several_domains_are_divided_by_their_means_on_both_sides(delta: Delta) -> None:
    one, two, three = (random_fisher(delta, seed) for seed in (2, 3, 4))
    loud = Fisher({name: 1000 * value for name, value in two.values.items()}, two.gradient, 8)
    a = joined(one.values) / one.mean + joined(two.values) / two.mean
    b = joined(three.values) / three.mean
    rule = soft_rule(delta, earlier=[one, loud], later=three, lam=0.7)
    torch.testing.assert_close(joined(rule.shares), a / (a + 0.7 * b), rtol=1e-5, atol=1e-6)


def test_weights_of_domains(delta: Delta) -> None:
    one, two = random_fisher(delta, 2), random_fisher(delta, 3)
    both = combine_fishers([one, two], weights=[3.0, 1.0])
    expected = 3 * joined(one.values) / one.mean + joined(two.values) / two.mean
    torch.testing.assert_close(joined(both.values), expected, rtol=1e-5, atol=1e-6)
    assert both.mean == pytest.approx(4.0, rel=1e-5)
    assert both.samples == one.samples + two.samples
    for bad in ([1.0], [1.0, 0.0], [1.0, -1.0], [1.0, float("nan")]):
        with pytest.raises(ConfigError, match="weights"):
            combine_fishers([one, two], weights=bad)
    with pytest.raises(ConfigError):
        combine_fishers([])


def test_what_is_refused(delta: Delta) -> None:
    one = random_fisher(delta, 2)
    nothing = Fisher({name: torch.zeros_like(value) for name, value in one.values.items()}, one.gradient, 8)
    with pytest.raises(NonFiniteError, match="positive mean"):
        soft_rule(delta, earlier=nothing, later=one)
    broken = random_fisher(delta, 3)
    broken.values["b"][1] = np.nan
    with pytest.raises(NonFiniteError, match="'b'"):
        soft_rule(delta, earlier=one, later=[one, broken])
    with pytest.raises(LayoutError, match="Fisher"):
        soft_rule(delta, earlier=one, later=random_fisher(diff(weights(0), some(weights(0), 9)), 2))
    for lam in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="lam"):
            soft_rule(delta, earlier=one, later=one, lam=lam)
    with pytest.raises(ConfigError, match="earlier"):
        soft_rule(delta, earlier=[], later=one)
