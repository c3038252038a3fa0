"""Completions that are held back: how far the model's distribution on them has moved since the start."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rlforget.domains.sampling import evaluating
from rlforget.interference.completions import Batches, check_same, collect, completed, pieces, scored_log_probs
from rlforget.interference.divergence import Divergence, nats_between, summarised
from rlforget.weights.ranks import from_first, is_first
from rlforget.weights.sharding import is_shard, settle


class Held:
    """Completions of the model at the start, with its log-probabilities then, in main memory.

    KL(π_start ‖ π_now) over them is, in expectation, the rise of the loss −log π of what the model used to say: the
    damage itself. 2509.04259 finds it the best predictor of forgetting.

    Args:
        model: The model, at the weights where the run starts. One that is spread over ranks is measured by all of them,
            on the same completions; the first keeps the log-probabilities.
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
        self._spread = any(map(is_shard, model.parameters()))
        if self._spread:
            check_same(taken, samples, seed)
        with torch.no_grad(), evaluating(model):
            for batch in completed(model, taken, seed=seed, tokenizer=tokenizer):
                for piece in pieces(model, batch):
                    self._batches.append({name: value.cpu() for name, value in piece.items()})
                    log_probs = scored_log_probs(model, piece)
                    if self._keeps:
                        self._log_probs.append(log_probs.cpu())
        settle(model)

    @property
    def _keeps(self) -> bool:
        return is_first() or not self._spread

    @torch.no_grad()
    def divergence(self, model: nn.Module) -> Divergence:
        """Measure KL(π_start ‖ π_now), in nats a completion."""
        nats = []
        with evaluating(model):
            for number, batch in enumerate(self._batches):
                piece = {name: value.to(self._device) for name, value in batch.items()}
                now = scored_log_probs(model, piece)
                if self._keeps:
                    nats.append(nats_between(self._log_probs[number].to(self._device), now, piece).cpu())
        settle(model)
        return from_first(lambda: summarised(torch.cat(nats))) if self._spread else summarised(torch.cat(nats))
