"""Completions sampled from a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from rlforget.domains.batches import IGNORED

DEFAULT_MAX_NEW_TOKENS = 256


@torch.no_grad()
def sample(
    model: Any,
    batch: Mapping[str, Any],
    *,
    seed: int,
    greedy: bool = False,
    pad_token_id: int,
    eos_token_id: int,
) -> dict[str, Tensor]:
    """Sample one completion for each prompt of a left-padded batch.

    The model's own generation config holds for everything that is not given here. The global random state is left
    as it was found.

    Args:
        model: A transformers causal language model.
        batch: `input_ids` [B, T], `attention_mask` [B, T], optionally `max_new_tokens`.
        seed: Seed of the draws.
        greedy: Take the likeliest token instead of a draw.
        pad_token_id: Token that fills completions after their end.
        eos_token_id: Token that ends a completion.

    Returns:
        `input_ids`, `attention_mask` and `labels`, [B, T + new]: labels are −100 on the prompt and after the end
        token; the end token itself is scored.
    """
    device = next(model.parameters()).device
    prompt, mask = batch["input_ids"].to(device), batch["attention_mask"].to(device)
    length = int(batch.get("max_new_tokens", DEFAULT_MAX_NEW_TOKENS))
    with _seeded(seed, device), _evaluating(model):
        ids = model.generate(
            input_ids=prompt,
            attention_mask=mask,
            max_new_tokens=length,
            do_sample=not greedy,
            pad_token_id=pad_token_id,
            eos_token_id=eos_token_id,
        )
    completion = ids[:, prompt.shape[1] :]  # [B, new]
    ended = (completion == eos_token_id).cumsum(1)
    scored = (ended == 0) | ((ended == 1) & (completion == eos_token_id))
    labels = torch.cat([torch.full_like(prompt, IGNORED), completion.masked_fill(~scored, IGNORED)], dim=1)
    return {"input_ids": ids, "attention_mask": torch.cat([mask, scored.to(mask.dtype)], dim=1), "labels": labels}


def completion_texts(tokenizer: Any, sampled: Mapping[str, Tensor]) -> list[str]:
    """Decode the scored tokens of `sample`'s result, without the end token."""
    texts = []
    for ids, labels in zip(sampled["input_ids"], sampled["labels"], strict=True):
        kept = [token for token in ids[labels != IGNORED].tolist() if token != tokenizer.eos_token_id]
        texts.append(tokenizer.decode(kept))
    return texts


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
