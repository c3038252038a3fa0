"""The diagonal Fisher: the loop's figures, at the right coordinates and the right point."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rlforget.delta import Delta, diff
from rlforget.domains import Domain, Example
from rlforget.errors import (
    ConfigError,
    EmptyDomainError,
    LayoutError,
    NonFiniteError,
    UnknownNameError,
    WrongBaseError,
)
from rlforget.interference import Fisher, fisher
from rlforget.interference.completions import completion_log_probs

from .conftest import tiny_model

Batch = dict[str, Tensor]


def by_loop(model: nn.Module, batches: list[Batch], delta: Delta) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Mean squared and mean gradient (of the loss), float64, straight from the definition."""
    model.eval()
    parameters = dict(model.named_parameters())
    squares = {name: torch.zeros(delta[name].changed, dtype=torch.float64) for name in delta}
    means = {name: torch.zeros(delta[name].changed, dtype=torch.float64) for name in delta}
    count = 0
    for batch in batches:
        for row in range(batch["input_ids"].shape[0]):
            model.zero_grad()
            one = {name: value[row : row + 1] for name, value in batch.items()}
            completion_log_probs(model, one).sum().backward()
            count += 1
            for name in delta:
                gradient = parameters[name].grad
                assert gradient is not None
                kept = gradient.flatten()[delta[name].indices.long()].double()
                squares[name] += kept**2
                means[name] -= kept
    model.zero_grad()
    return {n: v / count for n, v in squares.items()}, {n: v / count for n, v in means.items()}


def assert_close(found: Fisher, expected: tuple[dict[str, Tensor], dict[str, Tensor]]) -> None:
    largest = max(float(value.max()) for value in expected[0].values())
    for name, value in expected[0].items():
        torch.testing.assert_close(found.values[name].double(), value, rtol=1e-4, atol=1e-6 * largest)
        torch.testing.assert_close(found.gradient[name].double(), expected[1][name], rtol=1e-4, atol=1e-4)


def test_equals_the_loop(
    after: nn.Module, delta: Delta, completions: Callable[..., list[Batch]], untouched: Callable[..., Any]
) -> None:
    check = untouched(after)
    found = fisher(after, completions(10), at=delta, samples=10)
    check()
    assert found.samples == 10
    assert all(value.dtype == torch.float32 for value in found.values.values())
    assert_close(found, by_loop(after, completions(10), delta))
    values = torch.cat(list(found.values.values())).double()
    assert found.mean == pytest.approx(float(values.mean()))


def test_earlier_is_measured_at_the_old_bits(
    before: nn.Module, after: nn.Module, delta: Delta, completions: Callable[..., list[Batch]], untouched: Any
) -> None:
    check = untouched(after)
    found = fisher(after, completions(4), at=delta, where="earlier")
    check()
    assert found.where == "earlier"
    there = fisher(before, completions(4), at=delta)
    for name, value in there.values.items():
        assert torch.equal(found.values[name], value)


def test_midpoint_is_half_way(
    before: nn.Module, after: nn.Module, delta: Delta, completions: Callable[..., list[Batch]], untouched: Any
) -> None:
    check = untouched(after)
    found = fisher(after, completions(4), at=delta, where="midpoint")
    check()
    middle = tiny_model()
    with torch.no_grad():
        for parameter, old, new in zip(middle.parameters(), before.parameters(), after.parameters(), strict=True):
            parameter.copy_(old + (new - old) / 2)
    assert_close(found, by_loop(middle, completions(4), delta))


def test_bits_are_back_after_a_fault(after: nn.Module, delta: Delta, untouched: Any) -> None:
    check = untouched(after)
    ids = torch.full((1, 4), 99)  # no such token
    bad = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    with pytest.raises(IndexError):
        fisher(after, [bad], at=delta, where="earlier")
    check()


def test_samples_are_counted_over_batches(
    after: nn.Module, delta: Delta, completions: Callable[..., list[Batch]]
) -> None:
    found = fisher(after, completions(20, batch_size=3), at=delta, samples=7)
    assert found.samples == 7
    first = [{k: v[:7] for k, v in completions(20, batch_size=20)[0].items()}]
    for name, value in fisher(after, first, at=delta).values.items():
        torch.testing.assert_close(found.values[name], value, rtol=1e-5, atol=1e-5)


def test_same_arguments_same_bits(after: nn.Module, delta: Delta, completions: Callable[..., list[Batch]]) -> None:
    prompts = [{k: v for k, v in batch.items() if k != "labels"} | {"max_new_tokens": 5} for batch in completions(6)]
    state = torch.get_rng_state()
    first, second = (fisher(after, prompts, at=delta, seed=3) for _ in range(2))
    other = fisher(after, prompts, at=delta, seed=4)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first.values[name], second.values[name]) for name in first.values)
    assert any(not torch.equal(first.values[name], other.values[name]) for name in first.values)


class Letters(Domain):
    """Two-letter prompts."""

    name = "letters"
    max_new_tokens = 3

    def examples(self, count: int, *, seed: int = 0, split: Any = "train") -> list[Example]:
        return [Example("ab" if n % 2 else "b", "a") for n in range(count)]

    def reward(self, example: Example, completion: str) -> float:
        return 1.0


class Tokenizer:
    """One token a letter."""

    pad_token_id, eos_token_id = 0, 1

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) - ord("a") + 2 for letter in text]}


def test_a_domain_is_sampled(after: nn.Module, delta: Delta) -> None:
    found = fisher(after, Letters(), at=delta, samples=5, tokenizer=Tokenizer())
    assert found.samples == 5
    assert found.mean > 0


def test_bfloat16(before: nn.Module, after: nn.Module, completions: Callable[..., list[Batch]]) -> None:
    low = after.to(torch.bfloat16)
    delta = diff(before.to(torch.bfloat16), low)
    found = fisher(low, completions(4), at=delta)
    whole = by_loop(low, completions(4), delta)[0]
    ours = torch.cat(list(found.values.values())).double()
    torch.testing.assert_close(ours.norm(), torch.cat(list(whole.values())).norm(), rtol=0.05, atol=0)


def test_a_tied_delta_of_a_folder_fits(
    before: nn.Module, after: nn.Module, completions: Callable[..., list[Batch]], tmp_path: Any
) -> None:
    before.save_pretrained(tmp_path / "before")  # type: ignore[operator]
    after.save_pretrained(tmp_path / "after")  # type: ignore[operator]
    from_folders = diff(tmp_path / "before", tmp_path / "after")
    found = fisher(after, completions(4), at=from_folders)
    expected = fisher(after, completions(4), at=diff(before, after))
    assert sum(v.numel() for v in found.values.values()) == sum(v.numel() for v in expected.values.values())
    assert found.mean == pytest.approx(expected.mean)


def test_what_is_refused(
    before: nn.Module, after: nn.Module, delta: Delta, completions: Callable[..., list[Batch]]
) -> None:
    batches = completions(2)
    with pytest.raises(UnknownNameError, match="midpoint"):
        fisher(after, batches, at=delta, where="there")  # type: ignore[arg-type]
    with pytest.raises(EmptyDomainError):
        fisher(after, [], at=delta)
    with pytest.raises(EmptyDomainError):
        fisher(after, [{name: value[:0] for name, value in batches[0].items()}], at=delta)
    with pytest.raises(ConfigError, match="samples"):
        fisher(after, batches, at=delta, samples=0)
    with pytest.raises(ConfigError, match="tokenizer"):
        fisher(after, Letters(), at=delta)
    with pytest.raises(UnknownNameError, match="no-such"):
        fisher(after, "no-such", at=delta, tokenizer=Tokenizer())
    with pytest.raises(WrongBaseError, match="new bits"):
        fisher(before, batches, at=delta, where="midpoint")
    with pytest.raises(LayoutError, match="lm_head"):
        fisher(tiny_model(tied=False), batches, at=delta)
    with pytest.raises(LayoutError, match="two precisions"):  # of which nothing could be put back
        fisher(after, batches, at=diff(tiny_model().bfloat16(), after))


def test_nan_names_the_tensor(after: nn.Module, delta: Delta, completions: Callable[..., list[Batch]]) -> None:
    name = "model.layers.1.mlp.down_proj.weight"
    with torch.no_grad():
        dict(after.named_parameters())[name].flatten()[0] = torch.nan
    with pytest.raises(NonFiniteError, match=r"model\."):
        fisher(after, completions(2), at=delta)


def test_what_takes_no_gradient_has_no_fisher(after: nn.Module, completions: Callable[..., list[Batch]]) -> None:
    assert fisher(after, completions(2), diff(after, after)).values == {}
    after.register_buffer("count", torch.zeros(3))
    later = copy.deepcopy(after)
    later.get_buffer("count").add_(1)
    found = fisher(later, completions(2), diff(after, later), where="midpoint")
    assert found.samples == 0
    assert [(name, value.tolist()) for name, value in found.values.items()] == [("count", [0.0] * 3)]
    assert found.mean == 0.0
