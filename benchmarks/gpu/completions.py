"""Completions to take gradients of, and what plain torch makes of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.gpu.model import CausalLM
from rlforget.domains.batches import IGNORED

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Lengths:
    """Sizes of a batch: completions in it, tokens of a prompt, tokens of a completion."""

    rows: int
    prompt: int
    completion: int


def batches(vocabulary: int, lengths: Lengths, samples: int, device: torch.device, seed: int) -> list[Batch]:
    """Draw random tokens, all of one length, in batches."""
    random = torch.Generator(device).manual_seed(seed)
    size = (samples, lengths.prompt + lengths.completion)
    ids = torch.randint(vocabulary, size, generator=random, device=device)
    labels = ids.clone()
    labels[:, : lengths.prompt] = IGNORED
    whole = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    return [
        {name: value[start : start + lengths.rows] for name, value in whole.items()}
        for start in range(0, samples, lengths.rows)
    ]


def log_prob(model: CausalLM, batch: Mapping[str, Tensor]) -> Tensor:
    """Sum the log-probabilities of the scored tokens of a batch without padding."""
    labels = batch["labels"][:, 1:]
    kept = int((labels != IGNORED).sum(1).max())
    logits = model(batch["input_ids"], logits_to_keep=kept + 1).logits[:, :-1]
    return -functional.cross_entropy(logits.float().flatten(0, 1), labels[:, -kept:].flatten(), reduction="sum")


def one_by_one(given: list[Batch]) -> Iterator[Batch]:
    for batch in given:
        for row in range(len(batch["input_ids"])):
            yield {name: value[row : row + 1] for name, value in batch.items()}


def training_step(model: CausalLM, given: list[Batch]) -> None:
    """Take a forward and backward pass of each batch, with gradients of all weights and no optimizer."""
    for batch in given:
        (-log_prob(model, batch)).backward()  # type: ignore[no-untyped-call]
    model.zero_grad()


def fisher(model: CausalLM, given: list[Batch], places: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Square every completion's gradient at some coordinates, and average."""
    parameters: dict[str, nn.Parameter] = {name: p for name, p in model.named_parameters() if name in places}
    sums = {name: torch.zeros(len(where), device=where.device) for name, where in places.items()}
    count = 0
    for row in one_by_one(given):
        gradients = torch.autograd.grad(log_prob(model, row), list(parameters.values()))
        for name, gradient in zip(parameters, gradients, strict=True):
            sums[name] += gradient.flatten()[places[name]].float().square()
        count += 1
    return {name: total / count for name, total in sums.items()}
