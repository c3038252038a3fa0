"""A causal language model in the shapes of Qwen2.5, in plain torch: made on a device from its widths alone.

Parameters are named as in transformers. It has what `rlforget` asks of a model that is given its completions:
`config.vocab_size`, and logits from tokens, positions, and how many of the last ones are wanted.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.checkpoint_pair import Shape

THETA = 1e6  # of the rotary positions


class Output(NamedTuple):
    """What the model returns.

    Attributes:
        logits: [B, T, vocabulary].
    """

    logits: Tensor


class RMSNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.eps = 1e-6

    def forward(self, hidden: Tensor) -> Tensor:
        wide = hidden.float()
        return self.weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)).to(hidden.dtype)


class Attention(nn.Module):
    """Causal, with fewer heads of keys and values than of queries; of batches without padding."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.head = shape.head
        self.q_proj = nn.Linear(shape.hidden, shape.hidden)
        self.k_proj, self.v_proj = (nn.Linear(shape.hidden, shape.kv) for _ in range(2))
        self.o_proj = nn.Linear(shape.hidden, shape.hidden, bias=False)

    def forward(self, hidden: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        q, k, v = (
            layer(hidden).unflatten(-1, (-1, self.head)).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        groups = q.shape[1] // k.shape[1]
        q, k = (one * cosine + _turned(one) * sine for one in (q, k))
        k, v = (one.repeat_interleave(groups, dim=1) for one in (k, v))
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        result: Tensor = self.o_proj(mixed.transpose(1, 2).flatten(2))
        return result


class MLP(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(shape.hidden, shape.intermediate, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(shape.intermediate, shape.hidden, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        result: Tensor = self.down_proj(functional.silu(self.gate_proj(hidden)) * self.up_proj(hidden))
        return result


class Layer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.self_attn, self.mlp = Attention(shape), MLP(shape)
        self.input_layernorm, self.post_attention_layernorm = RMSNorm(shape.hidden), RMSNorm(shape.hidden)

    def forward(self, hidden: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), cosine, sine)
        result: Tensor = hidden + self.mlp(self.post_attention_layernorm(hidden))
        return result


class Decoder(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.hidden)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = RMSNorm(shape.hidden)


class CausalLM(nn.Module):
    """The model, its output layer tied to the embedding.

    Args:
        shape: Its widths.
        weights: By the names of `shape.tensors()`; the parameters are these very tensors.
    """

    def __init__(self, shape: Shape, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        assert shape.tied
        self.config = SimpleNamespace(vocab_size=shape.vocabulary)
        self._head = shape.head
        with torch.device("meta"):
            self.model = Decoder(shape)
            self.lm_head = nn.Linear(shape.hidden, shape.vocabulary, bias=False)
        tied = {"lm_head.weight": weights["model.embed_tokens.weight"]}
        self.load_state_dict({**weights, **tied}, assign=True)
        self.lm_head.weight = self.model.embed_tokens.weight
        self.eval()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        logits_to_keep: int = 0,
    ) -> Output:
        """Predict from tokens [B, T] without padding; 0 keeps the logits of all positions."""
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device).unsqueeze(0)
        hidden = self.model.embed_tokens(input_ids)
        cosine, sine = (one.to(hidden.dtype) for one in self._rotary(position_ids))
        for layer in self.model.layers:
            hidden = layer(hidden, cosine, sine)
        return Output(self.lm_head(self.model.norm(hidden)[:, -logits_to_keep:]))

    def compile_layers(self) -> None:
        """Compile every layer: one graph serves them all, where the whole model would take minutes."""
        for layer in self.model.layers:
            layer.compile()

    def _rotary(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosine and sine [B, 1, T, head], float32."""
        even = torch.arange(0, self._head, 2, device=positions.device, dtype=torch.float32)
        angles = (positions[:, None, :, None].float() * THETA ** (-even / self._head)).repeat(1, 1, 1, 2)
        return angles.cos(), angles.sin()


def _turned(values: Tensor) -> Tensor:
    first, second = values.chunk(2, -1)
    return torch.cat([-second, first], -1)
