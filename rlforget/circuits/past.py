"""The keys and values of the first tokens of some prompts, so that a forward may begin after them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlforget.interference.completions import accepted


@dataclass(frozen=True)
class Past:
    """What a transformers model remembers of the first tokens of a batch.

    Attributes:
        layers: The keys and the values of each layer: [B, key-value heads, length, head_dim].
        first: The lowest layer that is run; those below are not read.
    """

    layers: list[tuple[Tensor, Tensor]]
    first: int = 0

    @property
    def length(self) -> int:
        """How many tokens, padding included."""
        return self.layers[0][0].shape[2]

    def cache(self, rows: int) -> Any:
        """Return a cache for so many rows, one whole copy of the batch after another. A forward adds to it."""
        from transformers import DynamicCache

        cache = DynamicCache()
        for layer, (keys, values) in enumerate(self.layers):
            copies = rows // len(keys) if layer >= self.first else 1
            cache.update(keys.repeat(copies, 1, 1, 1), values.repeat(copies, 1, 1, 1), layer)
        return cache


@torch.no_grad()
def remembered(model: Any, ids: Tensor, mask: Tensor, length: int) -> Past | None:
    """Run the first tokens of some prompts and keep their keys and values.

    Args:
        model: A causal language model.
        ids: int64 [B, T].
        mask: int64 [B, T], 0 on padding.
        length: How many tokens of T; at least 1.

    Returns:
        None where the model keeps no plain keys and values.
    """
    ids, mask = ids[:, :length], mask[:, :length]
    wished = {"position_ids": (mask.cumsum(1) - 1).clamp_min(0), "use_cache": True, "logits_to_keep": 1}
    output = model(input_ids=ids, attention_mask=mask, **accepted(model.forward, wished))
    layers = getattr(getattr(output, "past_key_values", None), "layers", [])
    found: list[tuple[Any, Any]] = [(getattr(one, "keys", None), getattr(one, "values", None)) for one in layers]
    plain = all(_of_length(tensor, length) for pair in found for tensor in pair)
    return Past(found) if found and plain else None


def _of_length(tensor: Any, length: int) -> bool:
    return isinstance(tensor, Tensor) and tensor.dim() == 4 and tensor.shape[2] == length
