"""Tiny models of several architectures, and a task of token ids for them."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import nn

from rlforget.circuits import Pair, Task

VOCABULARY = 29
NAMES = ("gpt2", "qwen2", "llama", "wide")


def tiny(name: str, *, layers: int = 2, kv_heads: int = 2, seed: int = 0) -> Any:
    """Build a model of `layers` layers and 4 heads; `wide` has a head_dim that is not hidden / heads."""
    import transformers as t

    torch.manual_seed(seed)
    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": kv_heads,
        "initializer_range": 0.3,
    }
    model: Any
    if name == "gpt2":
        config = t.GPT2Config(
            vocab_size=VOCABULARY, n_positions=64, n_embd=16, n_layer=layers, n_head=4, initializer_range=0.3
        )
        model = t.GPT2LMHeadModel(config)
    elif name == "qwen2":
        model = t.Qwen2ForCausalLM(t.Qwen2Config(**shape))
    elif name == "llama":
        model = t.LlamaForCausalLM(t.LlamaConfig(**shape))
    else:
        model = t.Qwen3ForCausalLM(t.Qwen3Config(**shape, head_dim=6))
    with torch.no_grad():  # norms and biases start at constants, which would hide mistakes
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def task_of_ids(count: int = 6, *, seed: int = 0, lengths: tuple[int, ...] = (4, 6, 7)) -> Task:
    """Draw pairs of random prompts of several lengths, with answers of one to three tokens."""
    rng = random.Random(seed)

    def ids(length: int) -> tuple[int, ...]:
        return tuple(rng.randrange(VOCABULARY) for _ in range(length))

    pairs = []
    for i in range(count):
        length, answer = lengths[i % len(lengths)], 1 + i % 3
        target = ids(answer)
        distractor = ((target[0] + 1) % VOCABULARY, *target[1:])
        pairs.append(Pair(ids(length), ids(length), target, distractor))
    return Task("ids", pairs)


def with_separate_keys(model: Any) -> Any:
    """Return the same function without shared keys and values: each group's heads are repeated."""
    import transformers as t

    config = t.Qwen2Config(**{**model.config.to_dict(), "num_key_value_heads": model.config.num_attention_heads})
    expanded = t.Qwen2ForCausalLM(config).eval()
    groups = model.config.num_attention_heads // model.config.num_key_value_heads
    width = model.config.hidden_size // model.config.num_attention_heads
    state = {}
    for name, value in model.state_dict().items():
        if ".k_proj." in name or ".v_proj." in name:
            value = value.unflatten(0, (-1, width)).repeat_interleave(groups, dim=0).flatten(0, 1)
        state[name] = value
    expanded.load_state_dict(state)
    return expanded


def zero_head(sites: Any, layer: int, head: int) -> None:
    """Zero the columns of an output projection that read a head."""
    module: nn.Module = sites.modules[layer]
    width = sites.head_dim[layer]
    with torch.no_grad():
        weight: Any = module.weight
        columns = weight if type(module).__name__ == "Conv1D" else weight.T
        columns[head * width : (head + 1) * width] = 0.0
