"""The form that scales: what the plain form gives, without a gradient being held."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rlforget.delta import Delta, diff
from rlforget.errors import NonFiniteError, ParameterError, ZeroGradientError
from rlforget.interference import ConflictSubspace, conflict_subspace
from rlforget.interference.completions import completion_log_probs
from rlforget.interference.rows import domain_rows
from rlforget.interference.sample_gradients import columns_for, width
from rlforget.interference.weighted_gradient import add_weighted_gradient_
from rlforget.recovery import rollback

from .conftest import perturbed, tiny_model
from .test_gram import LargestTensor

Batch = dict[str, Tensor]
Make = Callable[..., list[Batch]]


def relative(found: ConflictSubspace, expected: ConflictSubspace) -> float:
    one, other = (torch.cat([v.flatten() for v in s.correction.values()]).double() for s in (found, expected))
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize(
    "settings",
    [
        {"passes": 2},
        {"rows": "token", "lam": 3.0},
        {"rows": "logit", "row_budget": 9},
        {"mu": "auto", "lam": "auto"},
    ],
    ids=str,
)
def test_equals_the_plain_form(
    settings: dict[str, Any], after: nn.Module, delta: Delta, completions: Make, untouched: Any
) -> None:
    next(after.parameters()).grad = torch.ones_like(next(after.parameters()))
    check = untouched(after)
    restore, protect = [completions(3), completions(3, seed=1)], [completions(4, seed=2)]
    plain, streamed = (
        conflict_subspace(after, delta, restore, protect, form=form, block=3, **settings)
        for form in ("plain", "streamed")
    )
    check()
    assert relative(streamed, plain) < 1e-4
    for one, other in zip(streamed.passes, plain.passes, strict=True):
        assert (one.restore_rows, one.protect_rows, one.lam) == (other.restore_rows, other.protect_rows, other.lam)
        assert (one.mu, one.damage, one.norm_share) == pytest.approx(
            (other.mu, other.damage, other.norm_share), rel=1e-4
        )


def test_padding_tokens_in_a_completion_count_as_in_a_backward_pass(
    after: nn.Module, delta: Delta, completions: Make
) -> None:
    batches = completions(4)
    for batch in batches:
        batch["input_ids"][:, 5] = 0  # the padding token, seen and scored
        batch["labels"][:, 5] = 0
    plain, streamed = (conflict_subspace(after, delta, [batches], form=form, block=3) for form in ("plain", "streamed"))
    assert streamed.passes[0].damage == pytest.approx(plain.passes[0].damage, rel=1e-5)
    assert relative(streamed, plain) < 1e-4


def test_blocks_do_not_matter_and_bits_repeat(after: nn.Module, delta: Delta, completions: Make) -> None:
    one, again, other = (
        conflict_subspace(after, delta, [completions(5)], [completions(4, seed=2)], form="streamed", block=block)
        for block in (2, 2, 9)
    )
    assert all(torch.equal(one.correction[name], again.correction[name]) for name in one.correction)
    assert relative(other, one) < 1e-5


def test_no_tensor_of_rows_times_weights_is_made(after: nn.Module, delta: Delta, completions: Make) -> None:
    size = sum(parameter.numel() for parameter in after.parameters())
    largest = {}
    for form in ("plain", "streamed"):
        with LargestTensor() as seen:
            conflict_subspace(after, delta, [completions(6)], [completions(6, seed=2)], form=form, block=2)
        largest[form] = seen.numel
    assert largest["plain"] >= 12 * size
    assert largest["streamed"] <= 4 * size  # the probes


def test_some_tensors_changed_and_sampled_completions(completions: Make) -> None:
    before, after = tiny_model(), tiny_model()
    with torch.no_grad():
        after.get_submodule("model.layers.1.mlp.up_proj").weight[0] += 0.1  # type: ignore[operator, union-attr]
        after.get_submodule("model.norm").weight += 0.1  # type: ignore[operator, union-attr]
    prompts = [{k: v for k, v in batch.items() if k != "labels"} | {"max_new_tokens": 3} for batch in completions(4)]
    plain, streamed = (
        # Few tensors and like prompts: at the μ of long rows the solution would be mostly rounding.
        conflict_subspace(after, diff(before, after), [prompts], [prompts], form=form, mu=1e-3)
        for form in ("plain", "streamed")
    )
    assert list(streamed.correction) == ["model.layers.1.mlp.up_proj.weight", "model.norm.weight"]
    assert relative(streamed, plain) < 1e-4


def test_half_precision_is_close(completions: Make) -> None:
    before = tiny_model().bfloat16()
    after = perturbed(before, 0.05, seed=1)
    plain, streamed = (
        conflict_subspace(after, diff(before, after), [completions(4)], [completions(4, seed=1)], form=form, mu=1e-2)
        for form in ("plain", "streamed")
    )
    assert relative(streamed, plain) < 0.1
    assert streamed.passes[0].damage_left < 0.5 * streamed.passes[0].damage


def test_probes_report_the_rounding(completions: Make) -> None:
    before = tiny_model().bfloat16()
    after = perturbed(before, 0.05, seed=1)
    delta = diff(before, after)
    found = conflict_subspace(after, delta, [completions(6)], form="streamed", mu=1e-2)
    assert all(found.probes[name].shape == (4, value.numel()) for name, value in found.correction.items())
    with rollback(after, delta, found) as undo:
        assert 0.0 < undo.report.rounding_damage < 1.0


def test_auto_holds_gradients_while_they_fit(
    after: nn.Module, delta: Delta, completions: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits = conflict_subspace(after, delta, [completions(3)])
    monkeypatch.setattr("rlforget.interference.forms.PLAIN_BYTES", 4 * 3 * 3000)
    does_not = conflict_subspace(after, delta, [completions(3)])
    assert {len(next(iter(s.probes.values()))) for s in (fits,)} == {16}
    assert {len(next(iter(s.probes.values()))) for s in (does_not,)} == {4}


def test_nan_names_the_tensor(before: nn.Module, after: nn.Module, completions: Make, untouched: Any) -> None:
    with torch.no_grad():
        after.get_submodule("model.norm").weight[3] = torch.nan  # type: ignore[operator, union-attr]
    check = untouched(after)
    with pytest.raises(NonFiniteError, match=r"gradient of 'model\."):
        conflict_subspace(after, diff(before, after), [completions(2)], form="streamed")
    check()


def test_frozen_tensors_are_named_or_stay(after: nn.Module, delta: Delta, completions: Make, untouched: Any) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    after.get_parameter(name).requires_grad_(False)
    check = untouched(after)
    with pytest.raises(ParameterError, match=name):
        conflict_subspace(after, delta, [completions(3)])
    plain, streamed = (
        conflict_subspace(after, delta, [completions(3)], form=f, frozen="skip") for f in ("plain", "streamed")
    )
    assert name not in streamed.correction
    assert relative(streamed, plain) < 1e-4
    check()


def test_gradients_of_nothing_are_refused(after: nn.Module, delta: Delta, completions: Make) -> None:
    nothing = [batch | {"labels": torch.full_like(batch["labels"], -100)} for batch in completions(3)]
    for form in ("plain", "streamed"):
        with pytest.raises(ZeroGradientError, match="3 rows"):
            conflict_subspace(after, delta, [nothing], form=form)


def test_weighted_gradient_is_the_sum(completions: Make, untouched: Any) -> None:
    model = tiny_model().eval()
    (rows,) = domain_rows(model, completions(4))
    y = torch.tensor([0.5, -2.0, 0.0, 1e-3], dtype=torch.float64)
    log_probs = completion_log_probs(model, rows)
    (log_probs * y * rows["weight"]).sum().backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    columns = columns_for(dict(model.named_parameters()))
    check = untouched(model)
    total = torch.ones(width(columns))
    halves = [({k: v[:2] for k, v in rows.items()}, y[:2]), ({k: v[2:] for k, v in rows.items()}, y[2:])]
    add_weighted_gradient_(total, model, columns, halves)
    torch.testing.assert_close(total, 1 + expected, rtol=1e-4, atol=1e-5)
    check()


def test_overflow_in_a_backward_pass_is_named(completions: Make, untouched: Any) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.get_submodule("model.layers.0.mlp.up_proj").weight.fill_(torch.inf)  # type: ignore[operator, union-attr]
    columns = columns_for(dict(model.named_parameters()))
    (rows,) = domain_rows(model, completions(2))
    check = untouched(model)
    with pytest.raises(NonFiniteError, match="gradient of"):
        add_weighted_gradient_(torch.zeros(width(columns)), model, columns, [(rows, torch.ones(2).double())])
    check()


def test_equals_the_plain_form_on_the_shipped_miniature() -> None:
    from rlforget.domains import miniature

    before, tokenizer = miniature.load()
    after = perturbed(before, 0.005, seed=1)
    plain, streamed = (
        conflict_subspace(after, diff(before, after), ["math"], ["code"], samples=8, tokenizer=tokenizer, form=form)
        for form in ("plain", "streamed")
    )
    assert relative(streamed, plain) < 1e-4
