"""A domain from a dataset of the Hugging Face hub, or from a folder of JSON, CSV or Parquet files."""

from __future__ import annotations

import string
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from rlforget.domains.base import Domain, Example, Split, is_eval
from rlforget.domains.jsonl import JsonlDomain, RewardFunction, import_reward
from rlforget.errors import DomainFileError, missing_extra


class HubDomain(Domain):
    """Examples made of a dataset's rows, by templates over its columns.

    Nothing is fetched until an example is asked for.

    Args:
        name: What the domain is called.
        dataset: A dataset's id on the hub, or a folder that `datasets.load_dataset` can read.
        prompt: Template of the prompt, `"Question: {question}\\nAnswer:"` say. `{meta[level]}` and `{options[0]}` reach
            into mappings and lists, `{options!l}` letters a list's items; doubled braces stand for themselves.
        answer: Template of the gold answer; empty where there is none to imitate.
        reference: Template of what the reward checks against where that is not the answer.
        reward: A function `(example, completion) -> float in [0, 1]`, or its import path.
        max_new_tokens: The longest completion that is sampled, in tokens.
        subset: The dataset's configuration.
        split: The split to train on. One prompt in eight of it is for evaluation, by its hash, unless there is an
            `evaluation_split`.
        evaluation_split: The split to evaluate on.
        revision: Commit, tag or branch of the dataset.
        rows: Take only so many rows of a split, the first ones.

    Raises:
        DomainFileError: The reward cannot be imported.
        MissingExtraError: The package datasets is not installed.
    """

    def __init__(
        self,
        name: str,
        dataset: str,
        *,
        prompt: str,
        answer: str = "",
        reference: str = "",
        reward: str | RewardFunction = "rlforget.domains.rewards:exact_match",
        max_new_tokens: int = 512,
        subset: str | None = None,
        split: str = "train",
        evaluation_split: str | None = None,
        revision: str | None = None,
        rows: int | None = None,
    ) -> None:
        self.name, self.max_new_tokens = name, max_new_tokens
        self._dataset, self._subset, self._revision, self._rows = dataset, subset, revision, rows
        self._templates = {"prompt": prompt, "answer": answer, "reference": reference}
        self._splits = {"train": split, "eval": evaluation_split}
        self._reward = import_reward(reward) if isinstance(reward, str) else reward

    def examples(self, count: int, *, seed: int = 0, split: Split = "train") -> list[Example]:
        """Draw `count` examples in a seeded order; all are drawn before one is repeated.

        Raises:
            DomainFileError: The dataset cannot be loaded, or lacks a column or a split.
        """
        return self._held.examples(count, seed=seed, split=split)

    def size(self, split: Split = "train") -> int | None:
        """Count the examples of a split; raises as `examples`."""
        return self._held.size(split)

    def reward(self, example: Example, completion: str) -> float:
        """Call the domain's reward function."""
        return self._reward(example, completion)

    @cached_property
    def _held(self) -> JsonlDomain:
        train, evaluation = self._loaded(str(self._splits["train"])), self._splits["eval"]
        if evaluation is not None:
            held = self._loaded(evaluation)
            asked = {example.prompt for example in held}
            train = [example for example in train if example.prompt not in asked]
        else:
            held = [example for example in train if is_eval(example.prompt)]
            train = [example for example in train if not is_eval(example.prompt)]
        return JsonlDomain(self.name, train, held, self._reward, self.max_new_tokens)

    def _loaded(self, split: str) -> list[Example]:
        try:
            from datasets import load_dataset
        except ImportError as fault:
            raise missing_extra("datasets", "train") from fault
        part = split if self._rows is None else f"{split}[:{self._rows}]"
        try:
            rows = load_dataset(self._dataset, self._subset, split=part, revision=self._revision)
        except Exception as fault:  # of many classes, as the reasons are
            raise self._fault(f"split {split!r}", f"{type(fault).__name__}: {fault}") from fault
        return [self._example(row, rows.column_names) for row in rows]

    def _example(self, row: Mapping[str, Any], columns: list[str]) -> Example:
        try:
            return Example(**{field: _filled(template, row) for field, template in self._templates.items()})
        except (LookupError, ValueError) as fault:
            wanted = f"templates over the columns {', '.join(columns)}"
            raise self._fault(wanted, f"{type(fault).__name__}: {fault}") from fault

    def _fault(self, expected: str, found: str) -> DomainFileError:
        return DomainFileError(
            f"domain {self.name!r}, dataset {self._dataset!r}",
            expected=expected,
            found=found,
            fix="Check the id, the subset, the splits and the columns on the dataset's page.",
        )


class _Formatter(string.Formatter):
    """Adds `!l`: the items of a list, each on a line after its letter."""

    def convert_field(self, value: Any, conversion: str | None) -> Any:
        if conversion == "l":
            return "\n".join(f"{letter}) {item}" for letter, item in zip(string.ascii_uppercase, value, strict=False))
        return super().convert_field(value, conversion)


def _filled(template: str, row: Mapping[str, Any]) -> str:
    """Fill a template with a row; `{choices[0]}` and `{meta[level]}` reach into lists and mappings."""
    return _Formatter().vformat(template, (), row)
