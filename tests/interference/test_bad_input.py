"""Whatever cannot be measured is named, and never becomes a silent number."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rlforget.delta import Delta, diff
from rlforget.domains.jsonl import JsonlDomain
from rlforget.errors import (
    ConfigError,
    NonFiniteError,
    ParameterError,
    ShortDomainError,
    ZeroGradientError,
)
from rlforget.interference import damage, damage_curve, fisher

from .conftest import perturbed, tiny_model

Batch = dict[str, Tensor]
Completions = Callable[..., list[Batch]]
MEASURES: dict[str, Callable[..., Any]] = {
    "fisher": lambda model, delta, batches, **more: fisher(model, batches, delta, **more),
    "damage": damage,
    "damage_curve": damage_curve,
}
every_measure = pytest.mark.parametrize("measure", list(MEASURES))


class Tokenizer:
    """One token a letter."""

    pad_token_id, eos_token_id = 0, 1

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) - ord("a") + 2 for letter in text]}


def letters(folder: Path, count: int) -> JsonlDomain:
    path = folder / "letters.jsonl"
    lines = [{"prompt": "abcdefgh"[n : n + 2], "answer": "a", "split": "train"} for n in range(count)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return JsonlDomain.from_file(path)


@every_measure
def test_a_domain_with_fewer_prompts_than_asked(
    measure: str, after: nn.Module, delta: Delta, tmp_path: Path, untouched: Any
) -> None:
    check = untouched(after)
    domain = letters(tmp_path, 5)
    with pytest.raises(ShortDomainError, match=r"letters.*6 prompts.*5 in its"):
        MEASURES[measure](after, delta, domain, samples=6, tokenizer=Tokenizer())
    found = MEASURES[measure](after, delta, domain, samples=5, tokenizer=Tokenizer())
    assert (found.samples if measure == "fisher" else found.count) == 5
    check()


@every_measure
def test_frozen_parameters_are_named_and_skipped_only_when_asked(
    measure: str, after: nn.Module, delta: Delta, completions: Completions, untouched: Any
) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    after.get_parameter(name).requires_grad_(False)
    check = untouched(after)
    with pytest.raises(ParameterError, match=rf"{name}.*frozen parameter.*frozen="):
        MEASURES[measure](after, delta, completions(3))
    found = MEASURES[measure](after, delta, completions(3), frozen="skip")
    if measure == "fisher":
        assert not found.values[name].any()
        assert found.values["model.layers.1.mlp.up_proj.weight"].any()
    else:
        assert found.skipped == (name,)
    with pytest.raises(ConfigError, match="skip"):
        MEASURES[measure](after, delta, completions(3), frozen="maybe")
    check()


@every_measure
@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_quantised_tensors_are_named_and_skipped_only_when_asked(
    measure: str, dtype: torch.dtype, before: nn.Module, after: nn.Module, completions: Completions
) -> None:
    for model in (before, after):
        model.add_module("packed", nn.Module())
        packed = model.get_submodule("packed")
        packed.weight = nn.Parameter(torch.ones(4).to(dtype), requires_grad=False)
        packed.scale = nn.Parameter(torch.ones(1))
    with torch.no_grad():
        after.get_parameter("packed.weight").view(torch.int8).fill_(3)
    delta = diff(before, after)
    with pytest.raises(ParameterError, match=r"packed\.weight.*quantised"):
        MEASURES[measure](after, delta, completions(2))
    MEASURES[measure](after, delta, completions(2), frozen="skip")


@every_measure
def test_a_frozen_parameter_that_did_not_change_is_no_fault(
    measure: str, before: nn.Module, completions: Completions
) -> None:
    after = copy.deepcopy(before)
    with torch.no_grad():
        after.get_parameter("model.norm.weight").add_(0.1)
    after.requires_grad_(False).get_parameter("model.norm.weight").requires_grad_(True)
    MEASURES[measure](after, diff(before, after), completions(2))


def test_a_fisher_of_nothing_but_zeros(after: nn.Module, delta: Delta, completions: Completions) -> None:
    batches = [{**batch, "labels": torch.full_like(batch["labels"], -100)} for batch in completions(3)]
    with pytest.raises(ZeroGradientError, match="zero at all"):
        fisher(after, batches, delta)


def test_gradients_that_overflow_in_float16_name_the_tensor(completions: Completions, untouched: Any) -> None:
    """Norms of a tiny residual stream multiply what comes back through them: log π is finite, its gradient is not."""
    before = tiny_model(tied=False).half()
    with torch.no_grad():
        for name, parameter in before.named_parameters():
            small = ("embed_tokens", "o_proj", "down_proj")
            parameter.mul_(1e-4 if any(part in name for part in small) else 1.0)
        before.get_parameter("model.norm.weight").mul_(30)
        before.get_parameter("lm_head.weight").mul_(100)
    after = copy.deepcopy(before)
    with torch.no_grad():
        after.get_parameter("model.embed_tokens.weight").mul_(1.1)
    check = untouched(after)
    with pytest.raises(NonFiniteError, match=r"embed_tokens\.weight.*float16.*65504"):
        fisher(after, completions(2), diff(before, after))
    check()
    after = after.float()
    assert fisher(after, completions(2), diff(before.float(), after)).mean > 0


@every_measure
def test_nan_weights_are_named_before_they_are_sampled_from(
    measure: str, before: nn.Module, after: nn.Module, completions: Completions, untouched: Any
) -> None:
    name = "model.layers.1.mlp.down_proj.weight"
    for model in (before, after):
        with torch.no_grad():
            model.get_parameter(name).view(-1)[0] = torch.nan
    delta = diff(before, after)
    check = untouched(after)
    prompts = [{k: v for k, v in batch.items() if k != "labels"} | {"max_new_tokens": 3} for batch in completions(2)]
    for batches in (prompts, completions(2)):
        with pytest.raises(NonFiniteError, match=name):
            MEASURES[measure](after, delta, batches)
    check()


def test_half_precision_that_overflows_forward_says_so(completions: Completions) -> None:
    before = tiny_model().half()
    with torch.no_grad():
        before.get_parameter("model.norm.weight").fill_(6e4)
    after = perturbed(before, 0.01, seed=1)
    with pytest.raises(NonFiniteError, match=r"float16.*bfloat16 or float32"):
        damage(after, diff(before, after), completions(2))
