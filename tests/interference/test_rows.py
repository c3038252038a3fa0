"""Rows of every kind: what they score, and that they all estimate one matrix."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from rlforget.delta import Delta
from rlforget.errors import ConfigError, EmptyDomainError
from rlforget.interference import conflict_subspace
from rlforget.interference.completions import completion_log_probs, next_token_log_probs
from rlforget.interference.rows import CANDIDATES, count, cut, domain_rows, total

from .conftest import tiny_model

Batch = dict[str, Tensor]
Make = Callable[..., list[Batch]]


def scored(batches: list[Batch]) -> int:
    return sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in batches)


def test_a_sequence_row_is_a_completion(completions: Make) -> None:
    batches = completions(6)
    rows = domain_rows(tiny_model(), batches)
    assert [count(one) for one in rows] == [4, 2]
    for one, batch in zip(rows, batches, strict=True):
        assert all(torch.equal(one[name], batch[name]) for name in batch)
    assert torch.cat([one["prompt"] for one in rows]).tolist() == list(range(6))
    assert torch.cat([one["weight"] for one in rows]).tolist() == pytest.approx([1 / math.sqrt(6)] * 6)


def test_token_rows_are_the_parts_of_a_completion(completions: Make) -> None:
    model, batches = tiny_model().eval(), completions(5)
    rows = domain_rows(model, batches, kind="token")
    assert total(rows) == scored(batches)
    whole = torch.cat([completion_log_probs(model, batch) for batch in batches])
    parts = torch.cat([completion_log_probs(model, one) for one in rows])
    prompt = torch.cat([one["prompt"] for one in rows])
    torch.testing.assert_close(torch.zeros(5).index_add(0, prompt, parts), whole)
    assert all(bool(((one["labels"] != -100).sum(1) == 1).all()) for one in rows)


def test_logit_rows_are_the_likeliest_tokens_at_each_place(completions: Make) -> None:
    model, batches = tiny_model().eval(), completions(3)
    (rows,) = domain_rows(model, batches, kind="logit")
    assert count(rows) == CANDIDATES * scored(batches)
    log_probs = next_token_log_probs(model, batches[0])
    first = int((batches[0]["labels"][0, 1:] != -100).nonzero()[0])
    likely = log_probs[0, first].topk(CANDIDATES)
    assert rows["labels"][:CANDIDATES, first + 1].tolist() == likely.indices.tolist()
    assert rows["weight"][:CANDIDATES].tolist() == pytest.approx((likely.values.exp() / 3).sqrt().tolist(), rel=1e-5)
    assert torch.equal(rows["input_ids"][0], batches[0]["input_ids"][0])  # the completion itself stands before it


@given(budget=st.integers(1, 40), seed=st.integers(0, 5))
@settings(deadline=None, max_examples=10)
def test_a_budget_keeps_so_many_and_the_total_weight_on_average(budget: int, seed: int) -> None:
    model = tiny_model()
    ids = torch.randint(2, 13, (5, 6), generator=torch.Generator().manual_seed(0))
    batches = [{"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}]
    every = domain_rows(model, batches, kind="token")
    some = domain_rows(model, batches, kind="token", budget=budget, seed=seed)
    assert total(some) == min(budget, 25)
    (rows,) = some
    assert float(rows["weight"].square().sum()) == pytest.approx(float(every[0]["weight"].square().sum()))
    if budget >= 25:
        assert torch.equal(rows["labels"], every[0]["labels"])


def test_a_share_multiplies_the_matrix(completions: Make) -> None:
    (one,), (double,) = (domain_rows(tiny_model(), completions(3), share=share) for share in (1.0, 2.0))
    torch.testing.assert_close(double["weight"].square(), 2 * one["weight"].square())


def test_a_domain_that_counts_more_is_restored_more(after: nn.Module, delta: Delta, completions: Make) -> None:
    """A domain that counts twice is the same as one that is given twice."""
    one, other = completions(3), completions(3, seed=1)
    weighed, twice = (
        conflict_subspace(after, delta, restore, mu=1e-2, restore_weights=weights)
        for restore, weights in (([one, other], [2.0, 1.0]), ([one, one, other], None))
    )
    assert weighed.passes[0].damage == pytest.approx(twice.passes[0].damage)
    alone = conflict_subspace(after, delta, [one, other], mu=1e-2)
    assert weighed.passes[0].damage > 1.01 * alone.passes[0].damage


def test_cut_keeps_all(completions: Make) -> None:
    rows = domain_rows(tiny_model(), completions(7))
    pieces = cut(rows, 3)
    assert [count(one) for one in pieces] == [3, 1, 3]
    assert torch.equal(torch.cat([p["input_ids"] for p in pieces]), torch.cat([r["input_ids"] for r in rows]))


def test_every_kind_estimates_one_matrix() -> None:
    """Over many completions of the model itself GᵀG is one and the same: seen along one direction of a small head."""
    from rlforget.domains import sample

    torch.manual_seed(0)
    model = tiny_model(tied=False).eval()
    prompt = {"input_ids": torch.full((600, 1), 5), "attention_mask": torch.ones(600, 1, dtype=torch.int64)}
    batches = [sample(model, prompt | {"max_new_tokens": 3}, seed=0, pad_token_id=0, eos_token_id=1)]
    bias = torch.zeros(13, requires_grad=True)
    handle = model.get_submodule("lm_head").register_forward_hook(lambda _m, _i, output: output + bias)
    direction = torch.randn(13, generator=torch.Generator().manual_seed(1))
    found = {}
    for kind in ("sequence", "token", "logit"):
        (rows,) = domain_rows(model, batches, kind=kind)  # type: ignore[arg-type]
        derivative = torch.autograd.functional.jvp(
            lambda value, rows=rows: _with(bias, value, model, rows), bias.detach(), direction
        )[1]
        found[kind] = float((derivative.double() * rows["weight"]).square().sum())
    handle.remove()
    assert found["sequence"] == pytest.approx(found["token"], rel=0.25)
    assert 0.5 * found["token"] < found["logit"] < 1.1 * found["token"]  # three of thirteen tokens


def _with(bias: Tensor, value: Tensor, model: nn.Module, rows: Any) -> Tensor:
    hook = model.get_submodule("lm_head").register_forward_hook(lambda _m, _i, output: output + value - bias.detach())
    try:
        return completion_log_probs(model, rows)
    finally:
        hook.remove()


def test_completions_without_a_token_are_refused(completions: Make) -> None:
    batch = completions(2)[0] | {"labels": torch.full((2, 9), -100)}
    with pytest.raises(EmptyDomainError, match="token to score"):
        domain_rows(tiny_model(), [batch], kind="token")


@pytest.mark.parametrize(
    "arguments",
    [
        {"rows": "word"},
        {"row_budget": 0},
        {"form": "dense"},
        {"block": 0},
        {"restore_weights": [1.0, 2.0]},
        {"restore_weights": [0.0]},
        {"mu": "best"},
        {"lam": "best"},
        {"mu": "auto", "random": True},
    ],
    ids=str,
)
def test_what_is_refused(after: nn.Module, delta: Delta, completions: Make, arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(arguments))):
        conflict_subspace(after, delta, [completions(2)], **arguments)
