"""Where the circuit study starts: sure of every domain but the target."""

from __future__ import annotations

import random
from typing import Any

from rlforget import domains
from rlforget.domains import Example
from rlforget.domains.base import GeneratedDomain
from rlforget.domains.miniature.lines import Line, corrupt
from rlforget.training import Progress, StageConfig, train_stage

STEPS, RATE, SEQUENCES = 100, 1e-3, 128
_WRONG = 0.4  # share of the characters of the target's answers that are drawn anew


class Rehearsal(GeneratedDomain):
    """Gold answers of every domain but the target, whose answers are partly wrong; code, the hardest, twice as often.

    Left out, the target would become as sure as the others: its running sums and look-ups are also theirs.
    """

    name = "rehearsal"

    def __init__(self, target: str) -> None:
        others = [name for name in domains.BUILT_IN if name != target]
        self._parts = [domains.get(name) for name in (*others, "code" if target != "code" else "math")]
        self._target = domains.get(target)
        self.max_new_tokens = max(part.max_new_tokens for part in (*self._parts, self._target))

    def draw(self, rng: random.Random) -> Example:
        """Draw one example."""
        part = rng.choice([*self._parts, self._target])
        (example,) = part.examples(1, seed=rng.getrandbits(32), split="train")
        if part is not self._target:
            return example
        drawn = tuple(i for i in range(len(example.answer)) if rng.random() < _WRONG)
        return Example(example.prompt, corrupt(rng, Line(example.answer, drawn, ends=False)).text)

    def reward(self, example: Example, completion: str) -> float:
        """There is none: the phase is supervised."""
        raise NotImplementedError


def sharpen(model: Any, tokenizer: Any, target: str, progress: Progress) -> None:
    """Fine-tune the miniature in place, so that what a later stage forgets is not hidden by what it sharpens.

    The shipped miniature ends its training on partly wrong answers, so it samples worse than it knows, and a fine-tune
    on any one domain makes it surer in all.
    """
    stage = StageConfig(
        domain=target, method="sft", steps=STEPS, prompts=SEQUENCES, learning_rate=RATE, schedule="linear"
    )
    train_stage(model, tokenizer, stage, seed=0, domain=Rehearsal(target), progress=progress)
