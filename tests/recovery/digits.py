"""Two toy skills on one model: after an M write sevens, after a Q write threes. Learning the second costs the first."""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass
from typing import Any

import torch

from rlforget.delta import Delta, diff
from rlforget.domains import Domain, Example, Split, completion_batches
from rlforget.domains.miniature.tokenizer import build_tokenizer


class Digits(Domain):
    """After a letter, write three of one digit; the reward is the share that is right."""

    max_new_tokens = 4

    def __init__(self, letter: str, digit: str) -> None:
        self.name, self._letter, self._digit = f"{letter}{digit}", letter, digit

    def examples(self, count: int, *, seed: int = 0, split: Split = "train") -> list[Example]:
        rng = random.Random(f"{split}/{seed}")
        first = "01234" if split == "train" else "56789"
        prompts = [rng.choice(first) + "".join(rng.choices("0123456789", k=3)) for _ in range(count)]
        return [Example(f"{self._letter}{prompt}=", 3 * self._digit) for prompt in prompts]

    def reward(self, example: Example, completion: str) -> float:
        return completion[:3].count(self._digit) / 3


SEVENS, THREES = Digits("M", "7"), Digits("Q", "3")


@dataclass(frozen=True)
class Forgetful:
    """A model that learnt sevens and then threes.

    Attributes:
        earlier: It before the threes.
        model: It after them.
        tokenizer: Its tokenizer.
        delta: From one to the other.
    """

    earlier: Any
    model: Any
    tokenizer: Any
    delta: Delta


def forgetful() -> Forgetful:
    """Train it: some dozen plain steps."""
    tokenizer = build_tokenizer()
    earlier = _tiny(len(tokenizer))
    _learn(earlier, tokenizer, SEVENS, steps=40)
    model = copy.deepcopy(earlier)
    _learn(model, tokenizer, THREES, steps=25)
    return Forgetful(earlier, model.eval(), tokenizer, diff(earlier, model))


def _tiny(vocabulary: int) -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        initializer_range=0.1,
        pad_token_id=0,
        eos_token_id=1,
    )
    return Qwen2ForCausalLM(config)


def _learn(model: Any, tokenizer: Any, domain: Domain, *, steps: int) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    (batch,) = completion_batches(domain, tokenizer, count=32, seed=7)
    for _ in range(steps):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
