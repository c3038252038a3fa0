"""Completions of one domain spread over the ranks of torch.distributed; a lone process makes all of them.

Every rank holds the whole model and learns every completion, so that all of them go on alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from rlforget.interference.completions import Batch, completed
from rlforget.weights.ranks import gathered, mine, world


def completed_by_ranks(
    model: Any, batches: Sequence[Batch], *, seed: int, tokenizer: Any = None
) -> list[dict[str, Tensor]]:
    """Complete batches, each on one rank with its own seed as in `completed`, and tell every rank the results."""
    if world() == 1 or all("labels" in batch for batch in batches):
        return list(completed(model, list(batches), seed=seed, tokenizer=tokenizer))
    own = {i for i in range(len(batches)) if mine(i)}
    found = completed(model, list(batches), seed=seed, tokenizer=tokenizer, only=own)
    told = gathered(dict(zip(sorted(own), ({k: v.cpu() for k, v in one.items()} for one in found), strict=True)))
    device = next(model.parameters()).device
    every = {position: one for part in told for position, one in part.items()}
    return [{name: value.to(device) for name, value in every[i].items()} for i in range(len(batches))]
