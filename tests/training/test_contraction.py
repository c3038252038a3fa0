"""The contraction along a refresh: measured inside the conflict subspace, beside the theorem's bound."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch

from rlforget.delta import Delta, diff
from rlforget.errors import ConfigError, WrongBaseError
from rlforget.interference.point import moved
from rlforget.training import ConflictSpan, contraction, following, refresh
from rlforget.training.span import values_of, whole_columns
from tests.recovery.digits import SEVENS, Forgetful, forgetful
from tests.training.toy import bits, same_bits


@pytest.fixture(scope="module")
def trained() -> Forgetful:
    return forgetful()


@pytest.fixture
def near(trained: Forgetful) -> tuple[Any, Delta]:
    """A tenth of the way from the earlier stage to the later one, where the loss is nearly quadratic."""
    model = copy.deepcopy(trained.earlier)
    with torch.no_grad():
        for parameter, after in zip(model.parameters(), trained.model.parameters(), strict=True):
            parameter.lerp_(after, 0.1)
    return model, diff(trained.earlier, model)


def test_plain_descent_contracts_as_the_theorem_says(trained: Forgetful, near: tuple[Any, Delta]) -> None:
    model, delta = near
    held = bits(model)
    found = contraction(model, delta, SEVENS, steps=12, samples=128, rank=4, within=True, tokenizer=trained.tokenizer)
    assert same_bits(held, bits(model))
    assert found.rank == 4
    assert 0 < found.mu <= found.largest
    assert found.rates == (0.5 / found.largest,) * 12
    assert len(found.distances) == len(found.bound) == 13
    assert found.bound[0] == found.distances[0]
    assert all(reached <= 1.1 * bound for reached, bound in zip(found.distances, found.bound, strict=True))
    assert found.distances[-1] < 0.6 * found.distances[0]
    json.dumps(found.to_dict(), allow_nan=False)


def test_the_loss_is_least_at_the_earlier_stage(trained: Forgetful, near: tuple[Any, Delta]) -> None:
    model, delta = near
    span = ConflictSpan(model, delta, SEVENS, samples=64, tokenizer=trained.tokenizer)
    torch.testing.assert_close(span.origin, values_of(whole_columns(trained.earlier)), rtol=0, atol=0)
    now = span.gradient(model)
    with moved(model, dict(model.named_parameters()), lambda name, _: dict(trained.earlier.named_parameters())[name]):
        assert float(span.gradient(model).norm()) < 1e-4 * float(now.norm())
    assert float(now @ (values_of(span.columns) - span.origin)) > 0  # it leads away from there


def test_a_real_refresh_is_followed(trained: Forgetful) -> None:
    model = copy.deepcopy(trained.model)
    span = ConflictSpan(model, trained.delta, SEVENS, samples=64, tokenizer=trained.tokenizer)
    watched = following(span)
    refresh(model, trained.tokenizer, SEVENS, steps=5, method="sft", seed=1, progress=False, callbacks=[watched])
    found = watched.contraction()
    assert len(found.distances) == 6
    assert len(found.rates) == 5
    assert found.distances[-1] == span.distance()
    change = values_of(whole_columns(trained.model)) - span.origin
    assert found.distances[0] == pytest.approx(float(span.span.coordinates(change).norm()))
    assert all(rate > 0 for rate in found.rates[:1])


def test_what_cannot_be_measured_is_refused(trained: Forgetful, near: tuple[Any, Delta]) -> None:
    model, delta = near
    for options in ({"steps": 0}, {"learning_rate": 0.0}):
        with pytest.raises(ConfigError, match="at least 1"):
            contraction(model, delta, SEVENS, tokenizer=trained.tokenizer, **options)
    with pytest.raises(WrongBaseError):
        contraction(trained.model, delta, SEVENS, tokenizer=trained.tokenizer)
    with pytest.raises(ConfigError, match="bfloat16"):
        contraction(copy.deepcopy(model).bfloat16(), delta, SEVENS, tokenizer=trained.tokenizer)
