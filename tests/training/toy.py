"""A toy skill that a random model learns in seconds: write sevens."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch

from rlforget.domains import Domain, Example, Split


def sevens(example: Example, completion: str) -> float:
    """Share of sevens, of three characters at least."""
    return completion.count("7") / max(3, len(completion))


class Sevens(Domain):
    name = "sevens"
    max_new_tokens = 6

    def examples(self, count: int, *, seed: int = 0, split: Split = "train") -> list[Example]:
        rng = random.Random(f"{split}/{seed}")
        return [Example("M" + "".join(rng.choices("0123456789+-", k=6)) + "=", "777") for _ in range(count)]

    def reward(self, example: Example, completion: str) -> float:
        return sevens(example, completion)


class Quiet:
    """A progress that is silent, and calls `at(title, step)` on every step."""

    def __init__(self, at: Any = None) -> None:
        self._at, self._title = at, ""

    def start(self, title: str, total: int) -> None:
        self._title = title

    def advance(self, done: int, figures: dict[str, float]) -> None:
        if self._at is not None:
            self._at(self._title, done)

    def stop(self) -> None:
        pass


def write_domain(path: Path, name: str) -> str:
    """Write the toy skill as a JSONL domain; returns its path as a stage names it."""
    header = {"domain": name, "reward": "tests.training.toy:sevens", "max_new_tokens": 6}
    rows = [{"prompt": e.prompt, "answer": e.answer} for e in Sevens().examples(200, seed=len(name))]
    path.write_text("\n".join(map(json.dumps, [header, *rows])), encoding="utf-8")
    return str(path)


def bits(model: Any) -> dict[str, torch.Tensor]:
    """The bits of all weights, by name."""
    return {name: value.detach().clone().view(torch.uint8) for name, value in model.state_dict().items()}


def same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
