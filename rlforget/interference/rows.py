"""Rows of G: which scored tokens of which completions a row is the gradient of, and how much it weighs.

Every kind of row is a completion with labels, `input_ids`, `attention_mask`, `labels` [B, T], and a `weight` [B]: the
row is weight · ∇ Σ log π(label) over the labelled positions. All kinds estimate one matrix, GᵀG = the mean over
completions of the Fisher information of a whole completion:

| kind | a row is | weight |
| --- | --- | --- |
| `sequence` | a completion | 1 |
| `token` | one scored token of a completion | 1; the tokens' gradients are uncorrelated, as log π is a martingale |
| `logit` | one of the three likeliest tokens at a scored position | √p: a root of the generalised Gauss–Newton matrix |
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from rlforget.domains.batches import IGNORED
from rlforget.errors import EmptyDomainError
from rlforget.interference.completed_by_ranks import completed_by_ranks
from rlforget.interference.completions import Batch, completed, next_token_log_probs
from rlforget.interference.sample_gradients import measuring

Kind = Literal["sequence", "token", "logit"]
KINDS: tuple[str, ...] = get_args(Kind)
CANDIDATES = 3

Rows = Mapping[str, Tensor]


def domain_rows(
    model: nn.Module,
    batches: Sequence[Batch],
    *,
    kind: Kind = "sequence",
    budget: int | None = None,
    share: float = 1.0,
    seed: int = 0,
    tokenizer: Any = None,
    alone: bool = False,
) -> list[Rows]:
    """Complete one domain's batches at the model's present weights, and take rows of them.

    Args:
        model: A causal language model.
        batches: The domain's prompts or completions.
        kind: What a row is.
        budget: How many rows to keep at most, drawn without replacement from all; those kept then weigh more, so that
            GᵀG stays an unbiased estimate. None keeps all.
        share: The domain's weight: it multiplies GᵀG.
        seed: Seed of completions and of the draw.
        tokenizer: Names the padding and the end token.
        alone: Whether every rank makes all completions, as where the model itself is spread over them.

    Returns:
        Blocks of `input_ids`, `attention_mask`, `labels` [B, T] int64, `weight` [B] float64 and `prompt` [B] int64, the
        position of the row's completion in the domain. One a batch; a batch without a row is left out.

    Raises:
        EmptyDomainError: There is no token to score.
    """
    blocks: list[Rows] = []
    completions = 0
    completions_of = completed if alone else completed_by_ranks
    for batch in completions_of(model, list(batches), seed=seed, tokenizer=tokenizer):
        end = completions + batch["labels"].shape[0]
        prompt = torch.arange(completions, end, device=batch["labels"].device)
        rows = {**batch, "weight": torch.ones_like(prompt, dtype=torch.float64), "prompt": prompt}
        blocks.append(rows if kind == "sequence" else _of_tokens(model, rows, kind))
        completions = end
    if not total(blocks):
        raise EmptyDomainError(
            "the completions",
            expected="at least one token to score",
            found=f"none in {completions} completions",
            fix="Give labels other than -100, or prompts whose completions are not empty.",
        )
    scale = math.sqrt(share) / math.sqrt(completions)
    return [{**rows, "weight": rows["weight"] * scale} for rows in _drawn(blocks, budget, seed)]


def cut(blocks: Sequence[Rows], size: int) -> list[Rows]:
    """Cut blocks to at most `size` rows each."""
    return [
        {name: value[start : start + size] for name, value in rows.items()}
        for rows in blocks
        for start in range(0, count(rows), size)
    ]


def count(rows: Rows) -> int:
    """Return how many rows a block has."""
    return int(rows["weight"].shape[0])


def total(blocks: Sequence[Rows]) -> int:
    """Return how many rows several blocks have."""
    return sum(map(count, blocks))


def _of_tokens(model: nn.Module, rows: Rows, kind: Kind) -> dict[str, Tensor]:
    """One row a scored token, or a likely token at its place; labels are −100 elsewhere."""
    sample, position = (rows["labels"][:, 1:] != IGNORED).nonzero(as_tuple=True)
    if kind == "token":
        token, weight = rows["labels"][sample, position + 1], rows["weight"][sample]
    else:
        with measuring(model), torch.no_grad():
            log_probs = next_token_log_probs(model, rows)[sample, position]  # [scored, vocabulary]
        likely, candidates = log_probs.topk(min(CANDIDATES, log_probs.shape[1]), dim=1)
        token, weight = candidates.flatten(), (likely.double() / 2).exp().flatten()
        sample, position = (one.repeat_interleave(likely.shape[1]) for one in (sample, position))
    labels = torch.full((sample.numel(), rows["labels"].shape[1]), IGNORED, device=sample.device)
    labels[torch.arange(sample.numel(), device=sample.device), position + 1] = token
    return {
        "input_ids": rows["input_ids"][sample],
        "attention_mask": rows["attention_mask"][sample],
        "labels": labels,
        "weight": weight,
        "prompt": rows["prompt"][sample],
    }


def _drawn(blocks: Sequence[Rows], budget: int | None, seed: int) -> list[Rows]:
    """Keep `budget` of the rows, or all; the order stays."""
    every = total(blocks)
    if budget is not None and budget < every:
        kept = torch.zeros(every, dtype=torch.bool)
        kept[torch.randperm(every, generator=torch.Generator().manual_seed(seed))[:budget]] = True
        grown = math.sqrt(every / budget)
        picks = torch.split(kept, [count(rows) for rows in blocks])
        blocks = [
            {name: value[pick.to(value.device)] * (grown if name == "weight" else 1) for name, value in rows.items()}
            for rows, pick in zip(blocks, picks, strict=True)
        ]
    return [rows for rows in blocks if count(rows)]
