"""A domain from a JSONL file and a reward function given by its import path."""

from __future__ import annotations

import importlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlforget.domains.base import Domain, Example, Split, empty, is_eval
from rlforget.domains.rewards.matching import exact_match
from rlforget.errors import DomainFileError

RewardFunction = Callable[[Example, str], float]
_FIELDS = ("prompt", "answer", "counterfactual", "counterfactual_answer", "reference")
_HEADER = ("domain", "reward", "max_new_tokens")


class JsonlDomain(Domain):
    """Examples read from a file, one JSON object a line.

    Each object has `prompt` and `answer`, and may have `counterfactual`, `counterfactual_answer` and `reference` (see
    `Example`). A first line
    `{"domain": NAME, "reward": "package.module:function", "max_new_tokens": N}` sets what its keys name; each may be
    left out. A line may say `"split": "train"` or `"split": "eval"`; one that does not is put in
    a split by the hash of its prompt.
    """

    def __init__(
        self,
        name: str,
        train: list[Example],
        evaluation: list[Example],
        reward: RewardFunction = exact_match,
        max_new_tokens: int = 64,
    ) -> None:
        self.name, self.max_new_tokens = name, max_new_tokens
        self._examples: dict[Split, list[Example]] = {"train": train, "eval": evaluation}
        self._reward = reward

    @classmethod
    def from_file(cls, path: str | Path, *, reward: str | RewardFunction | None = None) -> JsonlDomain:
        """Read a domain file.

        Args:
            path: The file.
            reward: A function `(example, completion) -> float in [0, 1]`, or its import path `module:function`.
                It wins over the file's own header; without either, `exact_match`.

        Raises:
            DomainFileError: The file, one of its lines or its reward cannot be used.
        """
        path = Path(path)
        rows = _read(path)
        header = _header(path, *rows.pop(0)) if rows and "prompt" not in rows[0][1] else {}
        splits: dict[Split, list[Example]] = {"train": [], "eval": []}
        for number, row in rows:
            example = _example(path, number, row)
            chosen = row.get("split", "eval" if is_eval(example.prompt) else "train")
            if chosen not in ("train", "eval"):
                raise _fault(path, number, 'split "train" or "eval"', repr(chosen))
            splits[chosen].append(example)
        shared = {e.prompt for e in splits["train"]} & {e.prompt for e in splits["eval"]}
        if shared:
            raise _fault(path, 0, "no prompt in both splits", repr(sorted(shared)[0]))
        chosen_reward = reward if reward is not None else header.get("reward", exact_match)
        function = import_reward(chosen_reward) if isinstance(chosen_reward, str) else chosen_reward
        tokens = header.get("max_new_tokens", 64)
        return cls(header.get("domain", path.stem), splits["train"], splits["eval"], function, tokens)

    def examples(self, count: int, *, seed: int = 0, split: Split = "train") -> list[Example]:
        """Draw `count` examples in a seeded order; all are drawn before one is repeated."""
        pool = self._examples[split]
        if not pool:
            raise empty(self.name, split)
        rng = random.Random(f"{self.name}/{split}/{seed}")
        drawn: list[Example] = []
        while len(drawn) < count:
            drawn += rng.sample(pool, len(pool))
        return drawn[:count]

    def size(self, split: Split = "train") -> int | None:
        """Count the lines of a split."""
        return len(self._examples[split])

    def reward(self, example: Example, completion: str) -> float:
        """Call the domain's reward function."""
        return self._reward(example, completion)


def import_reward(path: str) -> RewardFunction:
    """Import `module:function`.

    Raises:
        DomainFileError: There is no such module or function.
    """
    module, _, name = path.partition(":")
    expected, fix = "an importable module:function", "Check the spelling and PYTHONPATH."
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as fault:
        raise DomainFileError(f"reward {path!r}", expected=expected, found=str(fault), fix=fix) from fault
    if not callable(function):
        raise DomainFileError(f"reward {path!r}", expected=expected, found=type(function).__name__, fix=fix)
    return function  # type: ignore[no-any-return]


def _read(path: Path) -> list[tuple[int, dict[str, Any]]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as fault:
        found, fix = fault.strerror or str(fault), "Check the path."
        raise DomainFileError(str(path), expected="a file that can be read", found=found, fix=fix) from fault
    except UnicodeDecodeError as fault:
        raise _fault(path, 0, "a UTF-8 file", str(fault)) from fault
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as fault:
            raise _fault(path, number, "a JSON object", str(fault)) from fault
        if not isinstance(row, dict):
            raise _fault(path, number, "a JSON object", type(row).__name__)
        rows.append((number, row))
    return rows


def _header(path: Path, number: int, row: dict[str, Any]) -> dict[str, Any]:
    """Hold the first line, which has no prompt, to be a header."""
    for key in row:
        if key not in _HEADER:
            raise _fault(path, number, f"an example with a prompt, or a header of {', '.join(_HEADER)}", repr(key))
    for key in ("domain", "reward"):
        if not isinstance(row.get(key, ""), str):
            raise _fault(path, number, f"a string under {key!r}", type(row[key]).__name__)
    tokens = row.get("max_new_tokens", 1)
    if not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 1:
        raise _fault(path, number, "max_new_tokens, a positive integer", repr(tokens))
    return row


def _example(path: Path, number: int, row: dict[str, Any]) -> Example:
    for field in _FIELDS[:2]:
        if field not in row:
            raise _fault(path, number, f"the key {field!r}", ", ".join(row) or "no key")
    values = {field: row.get(field, "") for field in _FIELDS}
    for field, value in values.items():
        if not isinstance(value, str):
            raise _fault(path, number, f"a string under {field!r}", type(value).__name__)
    return Example(**values)


def _fault(path: Path, number: int, expected: str, found: str) -> DomainFileError:
    where = f"{path}, line {number}" if number else str(path)
    fix = "Mend the file: each line an object with a prompt, an answer, and optionally a split (the first: settings)."
    return DomainFileError(where, expected=expected, found=found, fix=fix)
