"""A task: pairs of a clean and a counterfactual prompt, with the right answer to each."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor

from rlforget import domains
from rlforget.domains.base import Split
from rlforget.domains.sampling import special_tokens
from rlforget.errors import ConfigError, DomainFileError, EmptyDomainError, TaskError

Text = str | Sequence[int]
"""Text for a tokenizer, or token ids that are taken as they are."""


@dataclass(frozen=True)
class Pair:
    """Two prompts of one form and equal token length, whose right answers differ.

    Attributes:
        clean: The prompt that is to be answered.
        counterfactual: The prompt that the replaced heads' outputs come from.
        target: The right answer to `clean`.
        distractor: The right answer to `counterfactual`, or another wrong answer to `clean`.
    """

    clean: Text
    counterfactual: Text
    target: Text
    distractor: Text


@dataclass(frozen=True)
class TaskBatch:
    """Pairs as tokens: B prompts of up to T tokens, padded alike, with answers of up to A tokens.

    Both prompts are followed by the target but for its last token, so that only the prompts differ (teacher forcing).

    Attributes:
        clean_ids: int64 [B, T].
        counterfactual_ids: int64 [B, T].
        attention_mask: int64 [B, T], 0 on padding; one for both, since the two are of equal length.
        positions: int64 [B, A]: where each answer token is predicted; 0 where there is none.
        targets: int64 [B, A] token ids.
        distractors: int64 [B, A] token ids; the target's where the distractor is shorter.
        answer_mask: bool [B, A].
        prompt_starts: int64 [B]: the first token of each prompt.
    """

    clean_ids: Tensor
    counterfactual_ids: Tensor
    attention_mask: Tensor
    positions: Tensor
    targets: Tensor
    distractors: Tensor
    answer_mask: Tensor
    prompt_starts: Tensor

    def __len__(self) -> int:
        return self.clean_ids.shape[0]

    @property
    def kept(self) -> int:
        """How many of the last positions hold every prediction of an answer token."""
        return self.clean_ids.shape[1] - int(self.positions[self.answer_mask].min())

    def to(self, device: torch.device | str) -> TaskBatch:
        """Return the batch on a device."""
        return TaskBatch(*(getattr(self, f.name).to(device) for f in fields(self)))

    def repeat(self, times: int) -> TaskBatch:
        """Return the batch `times` times over, one whole copy after another."""
        return TaskBatch(*(torch.cat([getattr(self, f.name)] * times) for f in fields(self)))

    def rows(self, chosen: slice | Tensor) -> TaskBatch:
        """Return some of the pairs."""
        return TaskBatch(*(getattr(self, f.name)[chosen] for f in fields(self)))


@dataclass(frozen=True)
class Task:
    """What a circuit is asked to explain.

    Attributes:
        name: What it is called in tables.
        pairs: The pairs, in order.
    """

    name: str
    pairs: list[Pair]

    def __len__(self) -> int:
        return len(self.pairs)

    @classmethod
    def from_domain(
        cls, domain: str | domains.Domain, *, count: int = 64, seed: int = 0, split: Split = "eval"
    ) -> Task:
        """Take a domain's examples and their counterfactuals.

        Args:
            domain: A domain or its name (see `rlforget.domains.get`).
            count: Number of pairs; fewer where some examples have no counterfactual, or one with the same answer.
            seed: Seed of the examples.
            split: Which examples.

        Raises:
            EmptyDomainError: Not one example has a counterfactual with another answer.
        """
        source = domains.get(domain)
        examples = source.examples(count, seed=seed, split=split)
        pairs = [
            Pair(e.prompt, e.counterfactual, e.answer, e.counterfactual_answer)
            for e in examples
            if e.counterfactual and e.answer and e.counterfactual_answer and e.counterfactual_answer != e.answer
        ]
        if not pairs:
            raise EmptyDomainError(
                f"domain {source.name!r}",
                expected="examples with a counterfactual whose answer differs",
                found=f"none among {len(examples)}",
                fix="Give its lines counterfactual and counterfactual_answer.",
            )
        return cls(source.name, pairs)

    @classmethod
    def from_jsonl(cls, path: str | Path) -> Task:
        """Read one JSON object a line, with the keys `clean`, `counterfactual`, `target`, `distractor`.

        Each is text, or a list of token ids. Blank lines are skipped.

        Raises:
            DomainFileError: A file or line that cannot be used.
        """
        path = Path(path)
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as fault:
            raise _file_fault(path, 0, "a readable UTF-8 file", str(fault)) from fault
        pairs = [_pair(path, number, line) for number, line in enumerate(lines, start=1) if line.strip()]
        if not pairs:
            raise _file_fault(path, 0, "at least one pair", "none")
        return cls(path.stem, pairs)

    def encode(
        self, tokenizer: Any, batch_size: int = 32, *, padding_side: Literal["left", "right"] = "left"
    ) -> Iterator[TaskBatch]:
        """Yield the pairs as tokens, in order.

        Args:
            tokenizer: Encodes text; may be None where all pairs are token ids. One without a pad token pads with its
                end token, or with 0: padding is masked.
            batch_size: Pairs a batch.
            padding_side: Where shorter rows are padded.

        Raises:
            TaskError: A pair whose prompts have different token lengths, or that is empty, or whose target and
                distractor are the same tokens.
        """
        pad, _ = special_tokens(None, tokenizer)
        if batch_size < 1:
            raise ConfigError("batch_size", expected="at least 1", found=repr(batch_size), fix="Use 1 or more.")
        for start in range(0, len(self.pairs), batch_size):
            pairs = enumerate(self.pairs[start : start + batch_size], start=start)
            rows = [_encode(self.name, tokenizer, number, pair) for number, pair in pairs]
            yield _batch(rows, pad, padding_side)


@dataclass(frozen=True)
class _Row:
    clean: list[int]
    counterfactual: list[int]
    target: list[int]
    distractor: list[int]


def _encode(name: str, tokenizer: Any, number: int, pair: Pair) -> _Row:
    row = _Row(
        _tokens(tokenizer, pair.clean, special=True),
        _tokens(tokenizer, pair.counterfactual, special=True),
        _tokens(tokenizer, pair.target, special=False),
        _tokens(tokenizer, pair.distractor, special=False),
    )
    where = f"task {name!r}, pair {number}"
    if len(row.clean) != len(row.counterfactual):
        raise TaskError(
            where,
            expected="a clean and a counterfactual prompt of one token length",
            found=f"{len(row.clean)} and {len(row.counterfactual)} tokens: {pair.clean!r} and {pair.counterfactual!r}",
            fix="Word the counterfactual with as many tokens, or leave the pair out.",
        )
    for field, tokens in (("clean", row.clean), ("target", row.target), ("distractor", row.distractor)):
        if not tokens:
            raise TaskError(where, expected=f"tokens in {field!r}", found="none", fix="Fill it in.")
    shared = min(len(row.target), len(row.distractor))
    if row.target[:shared] == row.distractor[:shared]:
        raise TaskError(
            where,
            expected="a target and a distractor that differ",
            found=f"{pair.target!r} and {pair.distractor!r}",
            fix="Give a distractor that is wrong, from its first token or within the target's length.",
        )
    return row


def _tokens(tokenizer: Any, text: Text, *, special: bool) -> list[int]:
    if not isinstance(text, str):
        return [int(token) for token in text]
    if tokenizer is None:
        raise ConfigError("tokenizer", expected="one, to encode text", found="none", fix="Pass tokenizer=...")
    return list(tokenizer(text)["input_ids"] if special else tokenizer(text, add_special_tokens=False)["input_ids"])


def _batch(rows: list[_Row], pad: int, side: Literal["left", "right"]) -> TaskBatch:
    lengths = [len(row.clean) + len(row.target) - 1 for row in rows]
    width, answers = max(lengths), max(len(row.target) for row in rows)
    shape, answer_shape = (len(rows), width), (len(rows), answers)
    clean, counterfactual = torch.full(shape, pad), torch.full(shape, pad)
    mask = torch.zeros(shape, dtype=torch.int64)
    positions, targets, distractors = (torch.zeros(answer_shape, dtype=torch.int64) for _ in range(3))
    starts = torch.zeros(len(rows), dtype=torch.int64)
    for i, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        start = width - length if side == "left" else 0
        here, count = slice(start, start + length), len(row.target)
        clean[i, here] = torch.tensor(row.clean + row.target[:-1])
        counterfactual[i, here] = torch.tensor(row.counterfactual + row.target[:-1])
        mask[i, here], starts[i] = 1, start
        positions[i, :count] = torch.arange(count) + start + len(row.clean) - 1
        targets[i, :count] = torch.tensor(row.target)
        shared = row.distractor[:count]
        distractors[i, :count] = torch.tensor(shared + row.target[len(shared) :])
    answer_mask = torch.arange(answers) < torch.tensor([[len(row.target)] for row in rows])
    return TaskBatch(clean, counterfactual, mask, positions, targets, distractors, answer_mask, starts)


def _pair(path: Path, number: int, line: str) -> Pair:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as fault:
        raise _file_fault(path, number, "a JSON object", str(fault)) from fault
    if not isinstance(row, dict):
        raise _file_fault(path, number, "a JSON object", type(row).__name__)
    values: list[Text] = []
    for field in fields(Pair):
        value = row.get(field.name)
        ids = isinstance(value, list) and all(isinstance(t, int) and not isinstance(t, bool) for t in value)
        if not (isinstance(value, str) or ids):
            raise _file_fault(path, number, f"text or token ids under {field.name!r}", repr(value))
        values.append(cast("Text", value))
    return Pair(*values)


def _file_fault(path: Path, number: int, expected: str, found: str) -> DomainFileError:
    where = f"{path}, line {number}" if number else str(path)
    return DomainFileError(where, expected=expected, found=found, fix="Mend the file.")
