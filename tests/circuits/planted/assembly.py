"""Transformers models whose heads are set by hand, over a residual stream of named slots.

Four devices make a stock model do exactly what is written down:

- One large constant coordinate, SCALE, dwarfs the rest of the residual stream, so that every norm divides by the same
  number whatever the heads write, and its weights undo that division: a norm is the identity to about 1e-6. LayerNorm
  also subtracts the mean; a second coordinate holds minus the sum of all others, so that the mean is zero.
- After a norm the constant is 1: it serves as the bias that Llama's projections lack.
- Rotary heads that look back a fixed distance use the three fastest frequencies, and heads that match content the
  slowest ones, which do not turn within a prompt. GPT-2's learned positions are one-hot.
- MLPs write nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

Family = Literal["gpt2", "qwen2", "llama"]

SCALE = 4000.0
CONSTANT = 0  # the coordinate of the residual stream that is always SCALE
FAST = 3  # rotary pairs that tell distances apart: they turn by 1, about 1/3 and about 1/10 radian a token
SLOW = 12  # rotary pairs from here on turn by at most 1e-4 radian a token
ROTARY_BASE = 10.0**8

MATCH = 8.0  # attention score of a match; nothing else scores above 0, but the sink
SINK = 4.0  # score of the prompt's first token, on which a head rests that matches nothing
POSITION = 60.0  # score of the exact distance; the next nearest is about 10 lower


class Stream:
    """The coordinates of the residual stream, by name. Coordinate 0 is the constant; the last one is the balance."""

    def __init__(self, **widths: int) -> None:
        self.slots: dict[str, range] = {}
        start = 1
        for name, width in widths.items():
            self.slots[name] = range(start, start + width)
            start += width
        self.used = start

    def __getitem__(self, name: str) -> list[int]:
        return list(self.slots[name])


@dataclass
class Head:
    """One head: q, k, v [head_dim, hidden] and o [hidden, head_dim]; heads that share k and v hold the same tensors."""

    q: Tensor
    k: Tensor
    v: Tensor
    o: Tensor


@dataclass
class Blueprint:
    """What a model is made of before it is written into a transformers model.

    Attributes:
        family: The architecture.
        stream: The residual stream's slots.
        vocabulary: One character a token.
        layers, heads, kv_heads, head_dim: The shape.
        length: Tokens of every prompt.
    """

    family: Family
    stream: Stream
    vocabulary: str
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    length: int
    embedding: Tensor = field(init=False)  # [vocabulary, hidden]
    unembedding: Tensor = field(init=False)  # [vocabulary, hidden]
    table: list[list[Head]] = field(init=False)  # [layers][heads]

    def __post_init__(self) -> None:
        least = self.stream.used + 1
        self.hidden = self.heads * (self.head_dim if self.family == "gpt2" else -(-least // self.heads))
        assert least <= self.hidden
        size, width = self.hidden, self.head_dim
        self.embedding = torch.zeros(len(self.vocabulary), size)
        self.embedding[:, CONSTANT] = SCALE
        self.unembedding = torch.zeros(len(self.vocabulary), size)
        group = self.heads // self.kv_heads
        self.table = []
        for _ in range(self.layers):
            shared = [(torch.zeros(width, size), torch.zeros(width, size)) for _ in range(self.kv_heads)]
            rows = [(torch.zeros(width, size), torch.zeros(size, width)) for _ in range(self.heads)]
            self.table.append([Head(q, *shared[h // group], o) for h, (q, o) in enumerate(rows)])

    def token(self, character: str) -> int:
        return self.vocabulary.index(character)

    def encode(self, text: str) -> list[int]:
        return [self.token(character) for character in text]

    def says(self, character: str, slot: str, values: dict[int, float]) -> None:
        """Write values into coordinates of a slot wherever this token stands."""
        for index, value in values.items():
            self.embedding[self.token(character), self.stream[slot][index]] = value

    # What a head attends to.

    def look_back(self, head: Head, distance: int) -> None:
        """Attend to the token `distance` before, whatever the tokens are."""
        if self.family == "gpt2":
            for position in range(distance, self.length):
                head.q[position, self.stream["position"][position]] = POSITION * self.head_dim**0.5
                head.k[position, self.stream["position"][position - distance]] = 1.0
            return
        strength = POSITION * self.head_dim**0.5 / FAST
        for pair in range(FAST):
            angle = torch.tensor(distance * frequency(pair, self.head_dim))
            head.k[pair, CONSTANT] = 1.0
            head.q[pair, CONSTANT] = strength * torch.cos(angle)
            head.q[pair + self.head_dim // 2, CONSTANT] = -strength * torch.sin(angle)

    def match(self, head: Head, query: list[int], key: list[int], score: float = MATCH) -> None:
        """Attend where coordinates `key` hold what the query's coordinates `query` hold."""
        rows = self._slow_rows()[1:]
        assert len(query) == len(key) <= len(rows)
        for row, q, k in zip(rows, query, key, strict=False):
            head.q[row, q] = score * self.head_dim**0.5
            head.k[row, k] = 1.0

    def rest(self, head: Head, score: float = SINK) -> None:
        """Attend to the prompt's first token where nothing matches."""
        row = self._slow_rows()[0]
        head.q[row, CONSTANT] = score * self.head_dim**0.5
        head.k[row, self.stream["start"][0]] = 1.0

    # What it moves.

    def move(self, head: Head, source: list[int], target: list[int], factor: float = 1.0) -> None:
        """Add `factor` times coordinates `source` of the tokens attended to onto coordinates `target`."""
        for row, (s, t) in enumerate(zip(source, target, strict=True)):
            head.v[row, s] = 1.0
            head.o[t, row] = factor

    def _slow_rows(self) -> list[int]:
        if self.family == "gpt2":
            return list(range(self.head_dim))
        half = self.head_dim // 2
        return [*range(SLOW, half), *range(half + SLOW, self.head_dim)]

    # Everything else.

    def distract(self, used: set[tuple[int, int]], leak: float, generator: torch.Generator) -> None:
        """Let all other heads read at random and write at random into a slot that no one answers from.

        Their outputs do follow the prompt, and with `leak` above 0 a little of every head reaches every coordinate.
        Where they share keys and values with a planted head, those stay as they are.
        """
        features = list(range(1, self.stream.used))
        group = self.heads // self.kv_heads
        for layer, row in enumerate(self.table):
            for h, head in enumerate(row):
                if (layer, h) in used:
                    continue
                head.q[:, features] = torch.randn(self.head_dim, len(features), generator=generator)
                shared = any((layer, other) in used for other in range(h - h % group, h - h % group + group))
                if not shared and h % group == 0:
                    for part in (head.k, head.v):
                        part[:, features] = 0.5 * torch.randn(self.head_dim, len(features), generator=generator)
                junk = self.stream["junk"]
                writes = torch.randn(len(junk), self.head_dim, generator=generator) / self.head_dim**0.5
                head.o[junk] = writes - writes.mean(0)  # no sum that the balance would have to make up for
            for head in row:
                head.o[features] += leak * torch.randn(len(features), self.head_dim, generator=generator)

    def build(self) -> Any:
        """Write it all into a transformers model, float32, in evaluation mode."""
        return (_gpt2 if self.family == "gpt2" else _rotary)(self).eval()


def frequency(pair: int, head_dim: int) -> float:
    """Radians a token by which a rotary pair turns."""
    return float(ROTARY_BASE ** (-2 * pair / head_dim))


@torch.no_grad()
def _rotary(plan: Blueprint) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    settings: dict[str, Any] = {
        "vocab_size": len(plan.vocabulary),
        "hidden_size": plan.hidden,
        "intermediate_size": 8,
        "num_hidden_layers": plan.layers,
        "num_attention_heads": plan.heads,
        "num_key_value_heads": plan.kv_heads,
        "head_dim": plan.head_dim,
        "max_position_embeddings": 64,
        "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": ROTARY_BASE},
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    model: Any
    if plan.family == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(**settings))
    else:
        model = LlamaForCausalLM(LlamaConfig(**settings))
    model.model.embed_tokens.weight.copy_(plan.embedding)
    model.lm_head.weight.copy_(plan.unembedding)
    for layer, row in zip(model.model.layers, plan.table, strict=True):
        attention, first = layer.self_attn, row[:: plan.heads // plan.kv_heads]
        _write(attention.q_proj, torch.cat([head.q for head in row]))
        _write(attention.k_proj, torch.cat([head.k for head in first]))
        _write(attention.v_proj, torch.cat([head.v for head in first]))
        _write(attention.o_proj, torch.cat([head.o for head in row], dim=1))
        layer.mlp.down_proj.weight.zero_()
    size = SCALE / plan.hidden**0.5
    for name, module in model.named_modules():
        if name.endswith("norm"):
            module.weight.fill_(size)
            module.weight[CONSTANT] = size / SCALE
    return model


def _write(projection: nn.Linear, weight: Tensor) -> None:
    """Write a weight; where the layer has a bias, what the constant coordinate would add goes there."""
    projection.weight.copy_(weight)
    if projection.bias is not None:
        projection.bias.copy_(weight[:, CONSTANT])
        projection.weight[:, CONSTANT] = 0.0


@torch.no_grad()
def _gpt2(plan: Blueprint) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=len(plan.vocabulary),
        n_positions=plan.length,
        n_embd=plan.hidden,
        n_layer=plan.layers,
        n_head=plan.heads,
        n_inner=8,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    model: Any = GPT2LMHeadModel(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "mlp.c_proj" in name:
            parameter.zero_()
    position = torch.zeros(plan.length, plan.hidden)
    position[range(plan.length), plan.stream["position"]] = 1.0
    model.transformer.wpe.weight.copy_(_balanced(position))
    model.transformer.wte.weight.copy_(_balanced(plan.embedding))
    model.lm_head.weight.copy_(plan.unembedding)
    size = SCALE * (2 / plan.hidden) ** 0.5
    for block, row in zip(model.transformer.h, plan.table, strict=True):
        parts = [torch.cat([getattr(head, name) for head in row]) for name in ("q", "k", "v")]
        block.attn.c_attn.weight.copy_(torch.cat(parts).T)
        block.attn.c_proj.weight.copy_(_balanced(torch.cat([head.o for head in row], dim=1).T))
    for name, module in model.named_modules():
        if name.rpartition(".")[2].startswith("ln_"):
            module.weight.fill_(size)
            module.weight[CONSTANT] = size / SCALE
    return model


def _balanced(writes: Tensor) -> Tensor:
    """Let the last coordinate of each row [rows, hidden] be minus the sum of the others."""
    writes = writes.clone()
    writes[:, -1] = 0.0
    writes[:, -1] = -writes.sum(1)
    return writes
