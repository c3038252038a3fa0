"""A random model before and after a sparse change, and completions to score: what the costs are measured on."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import rlforget as rf
from rlforget.domains.batches import IGNORED

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Size:
    """A model and what is fed to it.

    Attributes:
        settings: Of transformers' Qwen2Config.
        rows: Completions a batch.
        prompt: Tokens of a prompt.
        completion: Tokens of a completion.
        samples: n of the subspace rollback, a domain.
    """

    settings: dict[str, Any]
    rows: int
    prompt: int
    completion: int
    samples: int


_SETTINGS: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
    "initializer_range": 0.06,
}
SIZES = {
    "1M": Size(_SETTINGS, rows=32, prompt=24, completion=24, samples=512),
    "tiny": Size(_SETTINGS | {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}, 4, 4, 4, 8),
}


@dataclass(frozen=True)
class Setting:
    """The model after the change, the change, and a batch."""

    model: Any
    delta: rf.Delta
    size: Size

    def batches(self, samples: int, seed: int = 0) -> list[Batch]:
        """Draw completions, all of one length, in batches of the size's rows."""
        size = self.size
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(
            2, size.settings["vocab_size"], (samples, size.prompt + size.completion), generator=generator
        )
        labels = ids.clone()
        labels[:, : size.prompt] = IGNORED
        whole = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
        return [{k: v[i : i + size.rows] for k, v in whole.items()} for i in range(0, samples, size.rows)]


def build(name: str, *, changed: float = 0.05) -> Setting:
    """Make the model and change a share of each tensor's coordinates."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    size = SIZES[name]
    torch.manual_seed(0)
    before = Qwen2ForCausalLM(Qwen2Config(**size.settings)).eval()
    after = copy.deepcopy(before)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in after.parameters():
            moved = torch.rand(parameter.shape, generator=generator) < changed
            parameter += 0.01 * moved * torch.randn(parameter.shape, generator=generator)
    return Setting(after, rf.diff(before, after), size)


def training_step(model: Any, batches: list[Batch]) -> None:
    """Take the forward and backward pass of each batch, with gradients of all weights and no optimizer."""
    for batch in batches:
        model.zero_grad()
        model(**batch, use_cache=False).loss.backward()
    model.zero_grad()


@torch.no_grad()
def forward(model: Any, batches: list[Batch]) -> None:
    """Take a forward pass of each batch."""
    for batch in batches:
        model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
