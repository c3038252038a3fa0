"""KL divergence against its definition, one token at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rlforget.interference.divergence import kl_divergence

Batch = dict[str, Tensor]


def gpt2() -> nn.Module:
    """A model with learned positions, to which padding matters unless it is told of."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=13, n_positions=16, n_embd=16, n_layer=2, n_head=2)).eval()


def shifted(model: nn.Module) -> nn.Module:
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return other


@torch.no_grad()
def by_definition(reference: nn.Module, model: nn.Module, batches: list[Batch]) -> list[float]:
    """Of each completion, freed of its padding: Σ over scored tokens of Σ_v p (log p − log q)."""
    found = []
    for batch in batches:
        for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
            kept = ids[mask == 1]
            p, q = (m(input_ids=kept[None]).logits[0, :-1].double().log_softmax(-1) for m in (reference, model))
            tokens = (p.exp() * (p - q)).sum(-1)
            found.append(float(tokens[labels[mask == 1][1:] != -100].sum()))
    return found


@pytest.mark.parametrize("kind", ["rotary", "learned"])
def test_is_the_definition_whatever_the_padding(
    kind: str, before: nn.Module, completions: Callable[..., list[Batch]]
) -> None:
    reference = before.eval() if kind == "rotary" else gpt2()
    model = shifted(reference)
    expected = torch.tensor(by_definition(reference, model, completions(7)), dtype=torch.float64)
    found = kl_divergence(reference, model, completions(7))
    assert found.mean == pytest.approx(float(expected.mean()), rel=1e-4)
    assert found.stderr == pytest.approx(float(expected.std()) / 7**0.5, rel=1e-4)
    assert found.count == 7


def test_a_model_is_nothing_away_from_itself(before: nn.Module, completions: Callable[..., list[Batch]]) -> None:
    assert kl_divergence(before, copy.deepcopy(before), completions(4)).mean == 0.0


def test_models_and_modes_are_as_they_were(
    before: nn.Module, after: nn.Module, completions: Callable[..., list[Batch]], untouched: Any
) -> None:
    checks = [untouched(before), untouched(after)]
    assert kl_divergence(before, after, completions(4)).mean > 0
    for check in checks:
        check()
