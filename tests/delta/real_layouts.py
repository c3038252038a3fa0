"""Checkpoints as transformers saves them: small random models of several architectures, and the same after training."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2MoeConfig,
)
from transformers.utils import logging

from tests.delta.random_weights import same_bits

VOCABULARY = 96
_SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}

CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "qwen2": lambda: Qwen2Config(**_SMALL, tie_word_embeddings=True),
    "llama": lambda: LlamaConfig(**_SMALL),
    "gemma3": lambda: Gemma3TextConfig(**_SMALL, head_dim=16, sliding_window=16),  # tied
    # transformers holds the experts of a layer in one tensor, and saves them one by one under the names of old.
    "mixtral": lambda: MixtralConfig(**_SMALL, num_local_experts=3),
    "qwen2_moe": lambda: Qwen2MoeConfig(
        **_SMALL, num_experts=3, num_experts_per_tok=2, moe_intermediate_size=24, shared_expert_intermediate_size=24
    ),
    "gpt2": lambda: GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64),  # Conv1D, tied
}


def build(architecture: str, dtype: torch.dtype = torch.bfloat16, **changes: Any) -> PreTrainedModel:
    """Return a random model; `changes` are to its configuration."""
    config = CONFIGS[architecture]()
    for name, value in changes.items():
        setattr(config, name, value)
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config).to(dtype)
    return model


def train(model: PreTrainedModel, steps: int = 2, lr: float = 1e-4) -> None:
    """Take real optimizer steps, on random tokens."""
    random = torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    for _ in range(steps):
        ids = torch.randint(VOCABULARY, (2, 8), generator=random)
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def nudge(model: torch.nn.Module, share: float = 0.05) -> None:
    """Flip the lowest bit of some weights: for dtypes that nothing trains in."""
    random = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            chosen = torch.rand(parameter.shape, generator=random) < share
            bits = parameter.data.view(
                {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[parameter.itemsize]
            )
            bits[chosen] ^= 1


def save(model: PreTrainedModel, folder: Path, shard: str = "50GB", words: int = VOCABULARY) -> Path:
    """Write a checkpoint with a tokenizer of that many words."""
    model.save_pretrained(folder, max_shard_size=shard)
    vocabulary = {f"w{i}": i for i in range(words)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0").save_pretrained(folder)
    return folder


def load(folder: Path) -> dict[str, Tensor]:
    """Return the state dict that transformers reads, in the dtypes of the files, tied names included."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    state: dict[str, Tensor] = model.state_dict()
    return state


def same_state(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(same_bits(a[name], b[name]) for name in a)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the progress bars and notices of transformers to itself."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with contextlib.redirect_stderr(io.StringIO()):
        yield
    logging.enable_progress_bar()
    logging.set_verbosity(level)
