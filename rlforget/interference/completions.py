"""Completions to take gradients of: from a domain or from batches, scored by the model itself."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from rlforget import domains
from rlforget.domains.batches import IGNORED
from rlforget.errors import ConfigError, EmptyDomainError

Batch = Mapping[str, Any]
Batches = domains.Domain | str | Iterable[Batch]

_NO_TOKEN = -1  # the id of an end token that no model can emit


def collect(model: Any, batches: Batches, *, samples: int, seed: int = 0, tokenizer: Any = None) -> list[Batch]:
    """Return batches that hold up to `samples` prompts or completions in all.

    Args:
        model: Tells where its tokenizer is, where `batches` is a domain and `tokenizer` is None.
        batches: A domain, its name, or an iterable of dicts with `input_ids` [B, T], `attention_mask` [B, T] and,
            where the completions are given, `labels` [B, T] (−100 on what is not scored).
        samples: How many rows to take.
        seed: Seed of a domain's prompts.
        tokenizer: Encodes a domain's prompts.

    Raises:
        EmptyDomainError: There is not a single row.
    """
    if samples < 1:
        raise ConfigError("samples", expected="at least 1", found=str(samples), fix="Ask for one sample or more.")
    source: Iterable[Batch]
    if isinstance(batches, str | domains.Domain):
        source = domains.prompt_batches(domains.get(batches), _tokenizer_of(model, tokenizer), count=samples, seed=seed)
    else:
        source = batches
    taken = list(_take(source, samples))
    if not taken:
        raise EmptyDomainError(
            "the batches",
            expected="at least one prompt or completion",
            found="none",
            fix="Pass a domain or batches with rows; an exhausted generator has none left.",
        )
    return taken


def completed(model: Any, batches: list[Batch], *, seed: int, tokenizer: Any = None) -> Iterator[dict[str, Tensor]]:
    """Yield each batch on the model's device, with completions sampled from the model where it has no `labels`.

    Every batch draws from a seed of its own, so batches may be completed in any order.
    """
    device = next(model.parameters()).device
    for position, batch in enumerate(batches):
        if "labels" not in batch:
            pad, end = _special_tokens(model, tokenizer)
            draw = seed * 1_000_003 + position
            batch = domains.sample(model, batch, seed=draw, pad_token_id=pad, eos_token_id=end)
        yield {name: batch[name].to(device) for name in ("input_ids", "attention_mask", "labels")}


def completion_log_probs(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """Score completions: log π(completion | prompt), summed over the scored tokens.

    Args:
        model: A causal language model whose output has `.logits` [B, T, vocabulary].
        batch: `input_ids`, `attention_mask`, `labels` [B, T] int64, padded on either side.

    Returns:
        [B] float32 (float64 for a float64 model), differentiable.
    """
    mask = batch["attention_mask"]
    positions = (mask.cumsum(1) - 1).clamp_min(0)  # padding counts for nothing, as in generation
    extra = _accepted(model.forward, {"position_ids": positions, "use_cache": False})
    logits = model(input_ids=batch["input_ids"], attention_mask=mask, **extra).logits[:, :-1]
    labels = batch["labels"][:, 1:]
    precise = logits if logits.dtype == torch.float64 else logits.float()
    tokens = precise.log_softmax(-1).gather(-1, labels.clamp_min(0).unsqueeze(-1)).squeeze(-1)  # [B, T-1]
    return torch.where(labels != IGNORED, tokens, 0.0).sum(1)


def _take(source: Iterable[Batch], samples: int) -> Iterator[Batch]:
    left = samples
    for batch in source:
        rows = min(left, batch["input_ids"].shape[0])
        if rows:
            yield {name: value[:rows] if isinstance(value, Tensor) else value for name, value in batch.items()}
        left -= rows
        if left <= 0:
            return


def _tokenizer_of(model: Any, tokenizer: Any) -> Any:
    if tokenizer is not None:
        return tokenizer
    folder = getattr(model.config, "_name_or_path", "")
    if not folder:
        raise ConfigError(
            "tokenizer",
            expected="a tokenizer to encode the domain's prompts",
            found="none, and a model that was not loaded from a folder",
            fix="Pass tokenizer=...",
        )
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def _special_tokens(model: Any, tokenizer: Any) -> tuple[int, int]:
    """Return the padding and the end token: the tokenizer's, else the model's."""
    sources = (tokenizer, getattr(model, "generation_config", None), getattr(model, "config", None))

    def first(name: str) -> int | None:
        for source in sources:
            token = getattr(source, name, None)
            if token is not None:
                return int(token[0] if isinstance(token, list | tuple) else token)
        return None

    end = first("eos_token_id")
    pad = first("pad_token_id")
    if end is None:
        end = _NO_TOKEN
    return (max(end, 0) if pad is None else pad), end


def _accepted(function: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        return arguments
    names = {p.name for p in parameters}
    return {name: value for name, value in arguments.items() if name in names}
