"""How far one model's distribution is from another's, on the first one's own completions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlforget.domains.batches import IGNORED
from rlforget.domains.sampling import evaluating
from rlforget.interference.completions import (
    Batches,
    collect,
    completed,
    pieces,
    scored_labels,
    scored_log_probs,
)


@dataclass(frozen=True)
class Divergence:
    """A Kullback–Leibler divergence.

    Attributes:
        mean: KL(π_reference ‖ π_model) of a whole completion, in nats, averaged over completions.
        stderr: Standard error of the mean over completions.
        count: Number of completions.
    """

    mean: float
    stderr: float
    count: int


@torch.no_grad()
def kl_divergence(
    reference: Any, model: Any, batches: Batches, *, samples: int = 256, seed: int = 0, tokenizer: Any = None
) -> Divergence:
    """Measure KL(π_reference ‖ π_model) over completions that `reference` samples.

    At every scored token the divergence of the two next-token distributions is taken over the whole vocabulary; a
    completion's is their sum, which is an unbiased estimate with less variance than the log-ratio of the sampled
    tokens. 2509.04259 finds this the best predictor of forgetting.

    Args:
        reference: The model that samples, e.g. the base.
        model: The model that is compared, e.g. a fine-tune; of the same vocabulary.
        batches: A domain, its name, or batches (see `Batches`).
        samples: Number of completions.
        seed: Seed of prompts and completions.
        tokenizer: Encodes a domain's prompts; by default the one in the reference's folder.

    Raises:
        EmptyDomainError: There is not a single prompt.
    """
    taken = collect(reference, batches, samples=samples, seed=seed, tokenizer=tokenizer)
    values: list[Tensor] = []
    with evaluating(reference), evaluating(model):
        for batch in completed(reference, taken, seed=seed, tokenizer=tokenizer):
            for piece in pieces(reference, batch):
                p, q = scored_log_probs(reference, piece), scored_log_probs(model, piece)
                values.append(nats_between(p, q, piece).cpu())
    return summarised(torch.cat(values))


def nats_between(reference: Tensor, other: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """Take KL(reference ‖ other) of each completion: over the vocabulary, and summed over the scored tokens.

    Args:
        reference: Log-probabilities [B, S, vocabulary], as `scored_log_probs` returns them.
        other: Likewise.
        batch: With `labels` [B, T].

    Returns:
        [B] float64.
    """
    tokens = (reference.exp() * (reference - other)).sum(-1)  # [B, S]
    return torch.where(scored_labels(batch) != IGNORED, tokens, 0.0).sum(1).double()


def summarised(nats: Tensor) -> Divergence:
    """Return the mean of each completion's divergence, and its standard error (0 for a single one)."""
    stderr = float(nats.std() / len(nats) ** 0.5) if len(nats) > 1 else 0.0
    return Divergence(float(nats.mean()), stderr, len(nats))
