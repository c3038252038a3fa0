"""From a domain's text to batches of tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from rlforget.domains.base import Domain, Example, Split

IGNORED = -100  # the label of a token that is not scored, as in torch.nn.functional.cross_entropy


def prompt_batches(
    domain: Domain, tokenizer: Any, *, count: int, seed: int = 0, split: Split = "train", batch_size: int = 64
) -> Iterator[dict[str, Any]]:
    """Yield batches of prompts, left-padded.

    Yields:
        `input_ids` [B, T] int64, `attention_mask` [B, T] int64, and `max_new_tokens`.
    """
    examples = domain.examples(count, seed=seed, split=split)
    for start in range(0, count, batch_size):
        yield encode_prompts(domain, tokenizer, examples[start : start + batch_size])


def encode_prompts(domain: Domain, tokenizer: Any, examples: list[Example]) -> dict[str, Any]:
    """Encode the prompts of `examples` as one left-padded batch."""
    rows = [_encode(tokenizer, example.prompt) for example in examples]
    batch = _pad(rows, [[1] * len(row) for row in rows], tokenizer.pad_token_id)
    return {"input_ids": batch[0], "attention_mask": batch[1], "max_new_tokens": domain.max_new_tokens}


def completion_batches(
    domain: Domain, tokenizer: Any, *, count: int, seed: int = 0, split: Split = "train", batch_size: int = 64
) -> Iterator[dict[str, Any]]:
    """Yield batches of prompts with their gold answers and an end token, left-padded.

    Yields:
        `input_ids`, `attention_mask` and `labels` [B, T] int64; labels are −100 on padding and prompt.
    """
    examples = domain.examples(count, seed=seed, split=split)
    for start in range(0, count, batch_size):
        prompts = [_encode(tokenizer, e.prompt) for e in examples[start : start + batch_size]]
        answers = [_ended(tokenizer, e.answer) for e in examples[start : start + batch_size]]
        rows = [p + a for p, a in zip(prompts, answers, strict=True)]
        ids, mask = _pad(rows, [[1] * len(row) for row in rows], tokenizer.pad_token_id)
        targets = [[IGNORED] * len(p) + a for p, a in zip(prompts, answers, strict=True)]
        labels, _ = _pad(targets, [[1] * len(row) for row in rows], IGNORED)
        yield {"input_ids": ids, "attention_mask": mask, "labels": labels}


def _encode(tokenizer: Any, prompt: str) -> list[int]:
    """Encode a prompt, with whatever the tokenizer puts before a text."""
    return list(tokenizer(prompt)["input_ids"])


def _ended(tokenizer: Any, answer: str) -> list[int]:
    """Encode what follows a prompt, and the end token."""
    return [*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]


def _pad(rows: list[list[int]], masks: list[list[int]], filler: int) -> tuple[Tensor, Tensor]:
    width = max((len(row) for row in rows), default=0)
    ids = torch.tensor([[filler] * (width - len(row)) + row for row in rows], dtype=torch.int64)
    mask = torch.tensor([[0] * (width - len(row)) + row for row in masks], dtype=torch.int64)
    return ids, mask
