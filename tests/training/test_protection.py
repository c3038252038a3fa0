"""The span of gradients, and refreshes that spare other domains."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rlforget.delta import diff
from rlforget.domains.miniature.pretrain import build_model
from rlforget.errors import ConfigError, NonFiniteError, UnknownNameError
from rlforget.interference import conflict
from rlforget.recovery import rollback
from rlforget.training import Span, refresh
from rlforget.training.span import gradient_rows, squared_gradients, values_of, whole_columns
from tests.training.toy import Sevens, bits, same_bits


class Other(Sevens):
    name = "other"


FEW = {"steps": 3, "method": "sft", "prompts": 4, "seed": 5, "progress": False}


@given(st.integers(1, 6), st.integers(1, 12), st.integers(1, 6), st.integers(0, 99))
def test_a_span_splits_every_vector_as_a_dense_projector_does(n: int, width: int, rank: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows, vector = torch.randn(n, width, generator=generator), torch.randn(width, generator=generator)
    span = Span(rows, rank)
    _, values, right = torch.linalg.svd(rows.double(), full_matrices=False)
    kept = min(rank, n, width)
    right = right[:kept]
    assert span.rank <= kept
    if span.rank < kept:  # too ill-conditioned for float32
        assert float(values[span.rank] / values[0]) < 1e-2
        return
    torch.testing.assert_close(span.eigenvalues, values[:kept].square(), rtol=1e-4, atol=1e-5 * float(values[0]) ** 2)
    if kept == min(n, width) and float(values[kept - 1] / values[0]) > 0.05:
        expected = right.T @ (right @ vector.double())
        torch.testing.assert_close(span.part(vector).double(), expected, rtol=0, atol=1e-3)
        torch.testing.assert_close(span.coordinates(vector).norm(), expected.norm(), rtol=0, atol=1e-3)


def test_a_repeated_row_adds_no_direction() -> None:
    rows = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    assert Span(torch.cat([rows, rows[:1], rows.sum(0, keepdim=True)])).rank == 3
    with pytest.raises(NonFiniteError, match="zeros alone"):
        Span(torch.zeros(2, 5))
    with pytest.raises(ConfigError, match="at least 1"):
        Span(rows, 0)


def test_a_projected_refresh_leaves_the_other_domains_directions_alone(tokenizer: Any) -> None:
    plain, spared = build_model(0), build_model(0)
    start = whole_columns(plain)
    rows = gradient_rows(plain, start, Other(), samples=16, seed=5, tokenizer=tokenizer).clone()
    before = values_of(start)
    refresh(plain, tokenizer, Sevens(), **FEW)
    refresh(spared, tokenizer, Sevens(), protect=[Other()], protect_samples=16, **FEW)
    moved, bent = (values_of(whole_columns(model)) - before for model in (plain, spared))
    assert float((rows @ bent).norm() / bent.norm()) < 1e-3 * float((rows @ moved).norm() / moved.norm())
    assert float(bent.norm() / moved.norm()) > 0.1


def test_a_fisher_shortens_the_step_by_its_own_measure(tokenizer: Any) -> None:
    plain, spared = build_model(0), build_model(0)
    columns = whole_columns(plain)
    fisher = squared_gradients(plain, columns, Other(), samples=16, seed=5, tokenizer=tokenizer)
    before = values_of(columns)
    once = FEW | {"steps": 1}
    refresh(plain, tokenizer, Sevens(), **once)
    refresh(spared, tokenizer, Sevens(), protect=[Other()], protection="fisher", protect_samples=16, lam=3.0, **once)
    moved, bent = (values_of(whole_columns(model)) - before for model in (plain, spared))
    expected = moved / (1 + 3.0 * fisher / fisher.double().mean().float())
    torch.testing.assert_close(bent, expected, rtol=1e-3, atol=1e-7)


def test_both_protections_keep_the_other_domain_nearer_to_where_it_was(tokenizer: Any) -> None:
    def drift(model: Any) -> float:
        from rlforget.interference.divergence import kl_divergence

        return kl_divergence(build_model(0), model, Other(), samples=64, seed=9, tokenizer=tokenizer).mean

    longer = FEW | {"steps": 6, "learning_rate": 3e-4}
    drifts = []
    for extra in ({}, {"protect": [Other()]}, {"protect": [Other()], "protection": "fisher", "lam": 10.0}):
        model = build_model(0)
        refresh(model, tokenizer, Sevens(), protect_samples=64, **longer, **extra)
        drifts.append(drift(model))
    assert drifts[1] < 0.7 * drifts[0]
    assert drifts[2] < 0.7 * drifts[0]


def test_a_protected_refresh_repeats_to_the_bit(tokenizer: Any) -> None:
    models = [build_model(0), build_model(0)]
    for model in models:
        refresh(model, tokenizer, Sevens(), protect=[Other(), "qa"], protect_samples=8, **FEW)
    assert same_bits(bits(models[0]), bits(models[1]))


def test_a_refresh_goes_on_from_a_rollback(tokenizer: Any) -> None:
    earlier, model = build_model(0), build_model(0)
    refresh(model, tokenizer, Other(), **FEW)
    delta = diff(earlier, model)
    rollback(model, delta, conflict(delta, score="magnitude").top(fraction=0.5))
    begun = copy.deepcopy(model)
    first: list[Tensor] = []
    refresh(model, tokenizer, Sevens(), callbacks=[_started(first, model)], **FEW)
    torch.testing.assert_close(first[0], values_of(whole_columns(begun)), rtol=0, atol=0)
    assert not same_bits(bits(model), bits(begun))


def _started(found: list[Tensor], model: Any) -> Any:
    from transformers import TrainerCallback

    class Started(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            found.append(values_of(whole_columns(model)))

    return Started()


def test_a_protection_that_cannot_be_is_refused(tokenizer: Any) -> None:
    model = build_model(0)
    held = bits(model)
    for options, kind, said in (
        ({"protect": [Other()], "protection": "pray"}, UnknownNameError, "project, fisher"),
        ({"protect": ["poetry"]}, UnknownNameError, "poetry"),
        ({"protect": [Other()], "protection": "fisher", "lam": 0.0}, ConfigError, "positive"),
    ):
        with pytest.raises(kind, match=said):
            refresh(model, tokenizer, Sevens(), protect_samples=8, **FEW, **options)
    assert same_bits(held, bits(model))
