"""Directional derivatives: central differences, per-sample gradients and the layouts of transformers' models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from rlforget.errors import LayoutError
from rlforget.interference.completions import completion_log_probs, next_token_log_probs
from rlforget.interference.forward_mode import completion_derivative, directional_derivative, second_derivative_of
from rlforget.interference.sample_gradients import SampleGradients, columns_for, width
from tests.circuits.attention_layouts import ARCHITECTURES, tiny

from .conftest import tiny_model

Batch = dict[str, Tensor]
Completions = Callable[..., list[Batch]]


def random_direction(model: nn.Module, scale: float = 0.1, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: scale * torch.randn(p.shape, generator=generator) for name, p in model.named_parameters()}


def shifted(model: nn.Module, direction: dict[str, Tensor], step: float) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(step * direction[name].to(parameter.dtype))


def gpt2() -> nn.Module:
    """Computes in float64 throughout, where rotary models drop to float32 in their norms."""
    return tiny("gpt2").double()


def test_is_the_central_difference(completions: Completions) -> None:
    model = gpt2()
    direction = random_direction(model)
    batch = completions(4)[0]
    _, tangent = directional_derivative(model, direction, batch)
    step, ends = 1e-5, []
    for sign in (1, -2):
        shifted(model, direction, sign * step)
        with torch.no_grad():
            ends.append(next_token_log_probs(model, batch))
    difference = (ends[0] - ends[1]) / (2 * step)
    real = (batch["attention_mask"][:, :-1] == 1).unsqueeze(-1)
    torch.testing.assert_close(tangent * real, difference * real, rtol=1e-6, atol=1e-8)
    assert tangent.dtype == torch.float64
    assert float(tangent.abs().max()) > 0.1


@pytest.mark.parametrize("tied", [True, False])
def test_a_completions_derivative_is_its_gradient_times_the_direction(
    tied: bool, completions: Completions, untouched: Callable[..., Any]
) -> None:
    model = tiny_model(tied=tied).train()
    next(model.parameters()).requires_grad_(False)
    next(model.parameters()).grad = torch.ones(13, 16)
    check = untouched(model)
    batch, direction = completions(5, batch_size=5)[0], random_direction(model)
    columns = columns_for(dict(model.named_parameters()))
    rows = torch.empty(5, width(columns))
    log_probs = SampleGradients(model, columns).write(batch, rows)
    value, derivative = completion_derivative(model, direction, batch)
    check()
    expected = rows.double() @ torch.cat([direction[name].flatten() for name in columns]).double()
    torch.testing.assert_close(value, log_probs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(derivative.double(), expected, rtol=1e-4, atol=1e-4)


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 99), st.sampled_from([-3.0, -0.5, 2.0]), st.sets(st.integers(0, 23)))
def test_is_linear_in_the_direction_and_parts_add_up(seed: int, factor: float, kept: set[int]) -> None:
    model = tiny_model()
    ids = torch.randint(2, 13, (2, 6), generator=torch.Generator().manual_seed(seed))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    whole = random_direction(model, seed=seed)
    names = [name for i, name in enumerate(whole) if i in kept]
    one = {name: factor * whole[name] for name in names}
    other = {name: factor * value for name, value in whole.items() if name not in names}
    parts = directional_derivative(model, one, batch)[1] + directional_derivative(model, other, batch)[1]
    expected = factor * directional_derivative(model, whole, batch)[1]
    torch.testing.assert_close(parts, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_any_architecture_agrees_with_its_backward_pass(
    architecture: str, attention: str, completions: Completions
) -> None:
    model: Any = tiny(architecture)
    if attention != "eager" and model._supports_sdpa:
        model.set_attn_implementation(attention)
    before = model.config._attn_implementation, model.config._experts_implementation
    batch = completions(3, vocabulary=24)[0]
    direction = random_direction(model)
    _, derivative = completion_derivative(model, direction, batch)
    assert before == (model.config._attn_implementation, model.config._experts_implementation)
    weights = torch.tensor([1.0, -2.0, 0.5])
    (completion_log_probs(model, batch) * weights).sum().backward()
    pairs = [(p.grad, direction[name]) for name, p in model.named_parameters() if p.grad is not None]
    expected = sum(float((gradient.double() * along.double()).sum()) for gradient, along in pairs)
    size = sum(float((gradient * along).square().sum()) for gradient, along in pairs) ** 0.5
    assert float((derivative * weights).sum()) == pytest.approx(expected, abs=1e-4 * (size + abs(expected)))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_second_derivatives_are_those_of_the_gradient(architecture: str, completions: Completions) -> None:
    """uᵀ∇²v by two forward modes, against the difference of ⟨gradient, u⟩ on either side along v."""
    model = tiny(architecture)
    batch = completions(2, vocabulary=24, width=7)[0]
    one, other = random_direction(model), random_direction(model, seed=1)
    found = float(second_derivative_of(completion_log_probs, model, one, other, batch).sum())
    step, slopes = 2e-4 if architecture == "opt" else 2e-3, []  # opt has kinks, at the ReLUs
    for sign in (1, -2):
        shifted(model, other, sign * step)
        slopes.append(float(completion_derivative(model, one, batch)[1].sum()))
    expected = (slopes[0] - slopes[1]) / (2 * step)
    assert found == pytest.approx(expected, rel=0.03, abs=0.03)
    assert abs(expected) > 0.1


@pytest.mark.parametrize(("dtype", "close"), [(torch.bfloat16, 0.08), (torch.float16, 0.01)])
def test_half_precision_keeps_small_changes(dtype: torch.dtype, close: float, completions: Completions) -> None:
    model = tiny_model().to(dtype)
    direction = random_direction(model, scale=1e-7)  # in float16 a subnormal number, or none
    batch = completions(4)[0]
    values, tangent = directional_derivative(model, direction, batch)
    _, expected = directional_derivative(model.float(), direction, batch)
    assert values.dtype == tangent.dtype == torch.float32
    assert float((tangent - expected).norm()) < close * float(expected.norm())


def test_the_same_bits_each_time(completions: Completions) -> None:
    model, batch = tiny_model(), completions(4)[0]
    first, again = (directional_derivative(model, random_direction(model), batch)[1] for _ in range(2))
    assert torch.equal(first, again)


def test_a_direction_of_nothing_moves_nothing(completions: Completions) -> None:
    model, batch = tiny_model(), completions(2)[0]
    values, tangent = directional_derivative(model, {}, batch)
    with torch.no_grad():
        torch.testing.assert_close(values, next_token_log_probs(model.eval(), batch))
    assert not tangent.any()


def test_faults_are_named(completions: Completions, untouched: Callable[..., Any]) -> None:
    model, batch = tiny_model(), completions(2)[0]
    check = untouched(model)
    embedding = torch.zeros(13, 16)
    for direction, message in (
        ({"model.embed.weight": embedding}, "none of that name"),
        ({"model.embed_tokens.weight": embedding.T}, r"shape \[13, 16\]"),
        ({"model.embed_tokens.weight": embedding, "lm_head.weight": embedding}, "tied to 'model.embed_tokens.weight'"),
    ):
        with pytest.raises(LayoutError, match=message):
            directional_derivative(model, direction, batch)
    check()


def test_an_exception_leaves_the_model_as_it_was(completions: Completions, untouched: Callable[..., Any]) -> None:
    model, batch = tiny_model().train(), completions(2)[0]
    check = untouched(model)
    with pytest.raises(IndexError):
        directional_derivative(model, random_direction(model), {**batch, "input_ids": batch["input_ids"] + 99})
    check()
    assert model.config._attn_implementation == "sdpa"  # type: ignore[union-attr]
