"""Completions sampled from a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
    eos_token_id: int | Sequence[int],
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
        eos_token_id: Token that ends a completion, or several of which each does.

    Returns:
        `input_ids`, `attention_mask` and `labels`, [B, T + new]: labels are −100 on the prompt and after the end
        token; the end token itself is scored.
    """
    device = next(model.parameters()).device
    prompt, mask = batch["input_ids"].to(device), batch["attention_mask"].to(device)
    length = int(batch.get("max_new_tokens", DEFAULT_MAX_NEW_TOKENS))
    with _seeded(seed, device), evaluating(model):
        ids = model.generate(
            input_ids=prompt,
            attention_mask=mask,
            max_new_tokens=length,
            do_sample=not greedy,
            pad_token_id=pad_token_id,
            eos_token_id=eos_token_id if isinstance(eos_token_id, int) else list(eos_token_id),
        )
    completion = ids[:, prompt.shape[1] :]  # [B, new]
    ends = torch.isin(completion, torch.tensor(eos_token_id, device=device))
    scored = ends.cumsum(1) - ends.int() == 0  # no end token before it
    labels = torch.cat([torch.full_like(prompt, IGNORED), completion.masked_fill(~scored, IGNORED)], dim=1)
    return {"input_ids": ids, "attention_mask": torch.cat([mask, scored.to(mask.dtype)], dim=1), "labels": labels}


def special_tokens(model: Any, tokenizer: Any = None) -> tuple[int, list[int]]:
    """Return the padding token, and every token that ends a completion: the tokenizer's and the model's own.

    Instruction-tuned models often have several of the latter in their generation config. A model without any pads with
    token 0 and runs to the longest completion.
    """
    sources = (tokenizer, getattr(model, "generation_config", None), getattr(model, "config", None))

    def named(name: str) -> list[int]:
        values = (getattr(source, name, None) for source in sources)
        return [int(i) for v in values if v is not None for i in (v if isinstance(v, list | tuple) else [v])]

    ends = list(dict.fromkeys(named("eos_token_id")))
    return (named("pad_token_id") or ends or [0])[0], ends


def completion_texts(tokenizer: Any, sampled: Mapping[str, Tensor], ends: Sequence[int]) -> list[str]:
    """Decode the scored tokens of `sample`'s result, without the end tokens."""
    texts = []
    for ids, labels in zip(sampled["input_ids"], sampled["labels"], strict=True):
        kept = [token for token in ids[labels != IGNORED].tolist() if token not in ends]
        texts.append(tokenizer.decode(kept))
    return texts


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Hold a model in evaluation mode, without dropout; every module is as found afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
