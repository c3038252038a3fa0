"""A plain training loop on given tokens, in the model of `tests/training/conftest.py`."""

from __future__ import annotations

from typing import Any

import torch

TOKENS = torch.arange(60).view(4, 15) % 60


def completions() -> list[dict[str, torch.Tensor]]:
    """Four completions to score: the last ten tokens of each row."""
    labels = TOKENS.clone()
    labels[:, :5] = -100
    return [{"input_ids": TOKENS, "attention_mask": torch.ones_like(TOKENS), "labels": labels}]


def train(model: Any, optimizer: torch.optim.Optimizer, steps: int) -> None:
    """Take some steps."""
    for _ in range(steps):
        optimizer.zero_grad()
        model(input_ids=TOKENS, labels=TOKENS).loss.backward()
        optimizer.step()


def adam(model: Any, rate: float = 1e-3) -> torch.optim.Optimizer:
    """The optimizer of `train`."""
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
