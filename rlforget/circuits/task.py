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
from rlforget.circuits.alignment import Spans, align
from rlforget.domains.base import Split
from rlforget.domains.sampling import special_tokens
from rlforget.errors import ConfigError, DomainFileError, EmptyDomainError, TaskError

Text = str | Sequence[int]
"""Text for a tokenizer, or token ids that are taken as they are."""


@dataclass(frozen=True)
class Pair:
    """Two prompts of one form, whose right answers differ.

    Attributes:
        clean: The prompt that is to be answered.
        counterfactual: The prompt that the replaced heads' outputs come from.
        target: The right answer to `clean`.
        distractor: The right answer to `counterfactual`, or another wrong answer to `clean`.
        spans: Where the two prompts differ in token length: which tokens stand for which, see `alignment.align`. By
            default all that lies between their common beginning and their common end.
    """

    clean: Text
    counterfactual: Text
    target: Text
    distractor: Text
    spans: Spans = ()


@dataclass(frozen=True)
class TaskBatch:
    """Pairs as tokens: B prompts of up to T tokens, padded alike, with answers of up to A tokens.

    Both prompts are followed by the target but for its last token, so that only the prompts differ (teacher forcing),
    and both prompts of a pair end at the same place, whatever their lengths.

    Attributes:
        clean_ids: int64 [B, T].
        counterfactual_ids: int64 [B, T].
        attention_mask: int64 [B, T] of the clean prompts, 0 on padding.
        counterfactual_mask: int64 [B, T] of the counterfactual ones.
        sources: int64 [B, T]: the place in the counterfactual prompt that stands for each place of the clean one; its
            own where the two are of one length, and on padding.
        positions: int64 [B, A]: where each answer token is predicted; 0 where there is none.
        targets: int64 [B, A] token ids.
        distractors: int64 [B, A] token ids; the target's where the distractor is shorter.
        answer_mask: bool [B, A].
        prompt_starts: int64 [B]: the first token of each clean prompt.
    """

    clean_ids: Tensor
    counterfactual_ids: Tensor
    attention_mask: Tensor
    counterfactual_mask: Tensor
    sources: Tensor
    positions: Tensor
    targets: Tensor
    distractors: Tensor
    answer_mask: Tensor
    prompt_starts: Tensor

    def __len__(self) -> int:
        return self.clean_ids.shape[0]

    @property
    def source_ids(self) -> Tensor:
        """The counterfactual token that stands for each clean one: int64 [B, T]."""
        return self.counterfactual_ids.gather(1, self.sources)

    @property
    def of_one_length(self) -> bool:
        """Whether the two prompts of every pair are of one length, each token standing for the one at its place."""
        return bool((self.sources == torch.arange(self.sources.shape[1], device=self.sources.device)).all())

    def aligned(self, outputs: Tensor) -> Tensor:
        """Put what was read at the counterfactual prompts' places at the clean prompts': [B, T, ...] to the same."""
        if self.of_one_length:
            return outputs
        index = self.sources.view(*self.sources.shape, *[1] * (outputs.dim() - 2))
        return outputs.gather(1, index.expand_as(outputs))

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

        Each is text, or a list of token ids. `spans` may say which tokens stand for which in prompts of different
        lengths, e.g. [[[4, 5], [4, 7]]] (see `Pair`). Blank lines are skipped.

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
            TaskError: A pair whose prompts have different token lengths and cannot be aligned, or that is empty, or
                whose target and distractor are the same tokens.
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
    sources: list[int]


def _encode(name: str, tokenizer: Any, number: int, pair: Pair) -> _Row:
    where = f"task {name!r}, pair {number}"
    clean, counterfactual = (_tokens(tokenizer, text, special=True) for text in (pair.clean, pair.counterfactual))
    target, distractor = (_tokens(tokenizer, text, special=False) for text in (pair.target, pair.distractor))
    try:
        sources = align(clean, counterfactual, pair.spans)
    except ValueError as fault:
        raise TaskError(
            where,
            expected="a clean and a counterfactual prompt whose tokens can be aligned",
            found=f"{len(clean)} and {len(counterfactual)} tokens, {fault}: {pair.clean!r} and {pair.counterfactual!r}",
            fix="Word the counterfactual with as many tokens, name the spans that differ, or leave the pair out.",
        ) from None
    row = _Row(clean, counterfactual, target, distractor, sources)
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
    lengths = [max(len(row.clean), len(row.counterfactual)) + len(row.target) - 1 for row in rows]
    width, answers = max(lengths), max(len(row.target) for row in rows)
    shape, answer_shape = (len(rows), width), (len(rows), answers)
    ids = [torch.full(shape, pad) for _ in range(2)]
    masks = [torch.zeros(shape, dtype=torch.int64) for _ in range(2)]
    sources = torch.arange(width).repeat(len(rows), 1)
    positions, targets, distractors = (torch.zeros(answer_shape, dtype=torch.int64) for _ in range(3))
    starts = torch.zeros(len(rows), dtype=torch.int64)
    for i, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        count, forced = len(row.target), row.target[:-1]
        end = (width if side == "left" else length) - len(forced)  # of both prompts
        for prompt, found, mask in zip((row.clean, row.counterfactual), ids, masks, strict=True):
            here = slice(end - len(prompt), end + len(forced))
            found[i, here] = torch.tensor(prompt + forced)
            mask[i, here] = 1
        starts[i] = end - len(row.clean)
        sources[i, starts[i] : end] = torch.tensor(row.sources) + end - len(row.counterfactual)
        positions[i, :count] = torch.arange(count) + end - 1
        targets[i, :count] = torch.tensor(row.target)
        shared = row.distractor[:count]
        distractors[i, :count] = torch.tensor(shared + row.target[len(shared) :])
    answer_mask = torch.arange(answers) < torch.tensor([[len(row.target)] for row in rows])
    return TaskBatch(ids[0], ids[1], masks[0], masks[1], sources, positions, targets, distractors, answer_mask, starts)


def _pair(path: Path, number: int, line: str) -> Pair:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as fault:
        raise _file_fault(path, number, "a JSON object", str(fault)) from fault
    if not isinstance(row, dict):
        raise _file_fault(path, number, "a JSON object", type(row).__name__)
    values: list[Text] = []
    for key in ("clean", "counterfactual", "target", "distractor"):
        value = row.get(key)
        if not (isinstance(value, str) or (isinstance(value, list) and all(map(_is_whole, value)))):
            raise _file_fault(path, number, f"text or token ids under {key!r}", repr(value))
        values.append(cast("Text", value))
    spans = row.get("spans", [])
    if not isinstance(spans, list) or not all(_is_link(link) for link in spans):
        raise _file_fault(path, number, "pairs of [start, stop] under 'spans', such as [[[4, 5], [4, 7]]]", repr(spans))
    links = tuple(((ours[0], ours[1]), (theirs[0], theirs[1])) for ours, theirs in spans)
    clean, counterfactual, target, distractor = values
    return Pair(clean, counterfactual, target, distractor, links)


def _is_link(value: Any) -> bool:
    """Whether a JSON value is [[start, stop], [start, stop]]."""
    return _is_pair(value) and all(_is_pair(span) and all(map(_is_whole, span)) for span in value)


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _file_fault(path: Path, number: int, expected: str, found: str) -> DomainFileError:
    where = f"{path}, line {number}" if number else str(path)
    fix = "Mend the file: each line an object with clean, counterfactual, target and distractor."
    return DomainFileError(where, expected=expected, found=found, fix=fix)
