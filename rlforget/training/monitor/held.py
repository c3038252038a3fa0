"""Completions that are held back: how far the model's distribution on them has moved since the start."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rlforget.domains.sampling import evaluating
from rlforget.interference.completions import Batches, collect, completed, pieces, scored_log_probs
from rlforget.interference.divergence import Divergence, nats_between, summarised


class Held:
    """Completions of the model at the start, with its log-probabilities then, in main memory.

    KL(π_start ‖ π_now) over them is, in expectation, the rise of the loss −log π of what the model used to say: the
    damage itself. 2509.04259 finds it the best predictor of forgetting.

    Args:
        model: The model, at the weights where the run starts.
        batches: The domain or batches.
        samples: Completions, sampled from the model where they are not given. 4 bytes a completion, scored token and
            token of the vocabulary are kept.
        seed: Seed of prompts and completions.
        tokenizer: Encodes a domain's prompts.

    Raises:
        EmptyDomainError: There is nothing to sample.
    """

    def __init__(self, model: nn.Module, batches: Batches, *, samples: int, seed: int, tokenizer: Any) -> None:
        self._device = next(model.parameters()).device
        self._batches: list[dict[str, Tensor]] = []
        self._log_probs: list[Tensor] = []  # [B, S, vocabulary] each
        taken = collect(model, batches, samples=samples, seed=seed, tokenizer=tokenizer)
        with torch.no_grad(), evaluating(model):
            for batch in completed(model, taken, seed=seed, tokenizer=tokenizer):
                for piece in pieces(model, batch):
                    self._batches.append({name: value.cpu() for name, value in piece.items()})
                    self._log_probs.append(scored_log_probs(model, piece).cpu())

    @torch.no_grad()
    def divergence(self, model: nn.Module) -> Divergence:
        """Measure KL(π_start ‖ π_now), in nats a completion."""
        nats = []
        with evaluating(model):
            for batch, then in zip(self._batches, self._log_probs, strict=True):
                piece = {name: value.to(self._device) for name, value in batch.items()}
                nats.append(nats_between(then.to(self._device), scored_log_probs(model, piece), piece).cpu())
        return summarised(torch.cat(nats))
