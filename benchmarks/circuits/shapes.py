"""Randomly initialised models of known shapes, and random prompts for them."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch

PAD = "[pad]"


@dataclass(frozen=True)
class Shape:
    """A model's shape and the batch that it is measured on.

    Attributes:
        kind: `gpt2` or `qwen2`.
        settings: Of its configuration class.
        pairs: Prompts in the one batch.
        length: Tokens a prompt.
        late: Whether only the last quarter of a counterfactual may differ, as behind instructions or examples.
    """

    kind: str
    settings: dict[str, Any]
    pairs: int = 8
    length: int = 16
    late: bool = False


_QWEN2 = {  # the width of Qwen2 0.5B, 8 of its 24 layers and a fifth of its vocabulary, to fit a small machine
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 8,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 32_768,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
}
_TALL = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}

SHAPES = {
    "gpt2": Shape("gpt2", {}),  # GPT-2 small: 12 layers, 12 heads, hidden 768, vocabulary 50257
    "qwen2": Shape("qwen2", _QWEN2),
    "tall": Shape("qwen2", _TALL),  # as many layers and heads as Qwen2.5 3B, at a width of 128
    "tall-late": Shape("qwen2", _TALL, late=True),
    "tall-short": Shape("qwen2", _TALL, pairs=2, length=8),
    "tall-tiny": Shape("qwen2", _TALL | {"num_hidden_layers": 3, "num_attention_heads": 4}, pairs=4, length=8),
    "gpt2-tiny": Shape("gpt2", {"n_layer": 3, "n_head": 4, "n_embd": 32, "vocab_size": 99}, pairs=4, length=8),
    "qwen2-tiny": Shape(
        "qwen2",
        _TALL | {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 99},
        pairs=4,
        length=8,
    ),
}


def build(name: str, seed: int = 0) -> Any:
    """Make the model, float32, in evaluation mode, with attention written out so that every library can hook it.

    The weights are drawn at three times the usual scale: at the usual one the logits of an untrained model hardly
    depend on its heads.
    """
    import transformers

    shape = SHAPES[name]
    settings = shape.settings | {"bos_token_id": None, "eos_token_id": None, "attn_implementation": "eager"}
    settings["initializer_range"] = 0.06
    torch.manual_seed(seed)
    if shape.kind == "gpt2":
        model: Any = transformers.GPT2LMHeadModel(transformers.GPT2Config(**settings))
    else:
        model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**settings))
    return model.float().eval()


def tokenizer(name: str) -> Any:
    """Make a tokenizer whose words are the numbers of its tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {str(i): i for i in range(1, size(name))} | {PAD: 0}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token=PAD))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token=PAD, eos_token=PAD, padding_side="left")


def size(name: str) -> int:
    """The vocabulary's size."""
    return int(SHAPES[name].settings.get("vocab_size", 50_257))


@dataclass(frozen=True)
class Prompts:
    """Pairs of prompts as token ids.

    Attributes:
        clean: A list of ids a prompt, all of one length.
        counterfactual: The same with a quarter of the tokens drawn anew: any of them, or the last ones.
        targets: One token a pair.
        distractors: One token a pair.
    """

    clean: list[list[int]]
    counterfactual: list[list[int]]
    targets: list[int]
    distractors: list[int]


def prompts(name: str, seed: int = 0) -> Prompts:
    """Draw the batch."""
    shape, rng = SHAPES[name], random.Random(seed)
    clean = [[rng.randrange(1, size(name)) for _ in range(shape.length)] for _ in range(shape.pairs)]
    counterfactual = [list(ids) for ids in clean]
    for ids in counterfactual:
        changed = shape.length // 4
        for position in range(shape.length)[-changed:] if shape.late else rng.sample(range(shape.length), changed):
            ids[position] = rng.randrange(1, size(name))
    answers = [rng.sample(range(1, size(name)), 2) for _ in clean]
    return Prompts(clean, counterfactual, [a for a, _ in answers], [b for _, b in answers])
