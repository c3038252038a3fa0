"""A domain from a reasoning-gym dataset."""

from __future__ import annotations

import itertools
from typing import Any

from rlforget.domains.base import Domain, Example, Split, empty, is_eval
from rlforget.errors import UnknownNameError, missing_extra

_TRIES = 64  # draws an example may take before the split counts as empty


class ReasoningGymDomain(Domain):
    """A procedurally generated dataset of reasoning-gym, with its own verifier.

    Args:
        dataset: The dataset's name, e.g. `chain_sum`.
        max_new_tokens: The longest completion that is sampled, in tokens.
        options: Passed on to `reasoning_gym.create_dataset`.
    """

    def __init__(self, dataset: str, *, max_new_tokens: int = 64, **options: Any) -> None:
        try:
            import reasoning_gym
        except ImportError as fault:
            raise missing_extra("reasoning-gym", "reasoning-gym") from fault
        self.name, self.max_new_tokens = f"reasoning-gym:{dataset}", max_new_tokens
        self._dataset, self._options, self._gym = dataset, options, reasoning_gym
        self._entries: dict[str, dict[str, Any]] = {}
        self._scorer = self._create(size=1, seed=0)

    def _create(self, *, size: int, seed: int) -> Any:
        try:
            return self._gym.create_dataset(self._dataset, size=size, seed=seed, **self._options)
        except ValueError as fault:
            raise UnknownNameError(
                f"reasoning-gym dataset {self._dataset!r}",
                expected="the name and options of a registered dataset",
                found=str(fault),
                fix="List the names with: python -c 'import reasoning_gym.factory as f; print(list(f.DATASETS))'",
            ) from fault

    def examples(self, count: int, *, seed: int = 0, split: Split = "train") -> list[Example]:
        """Draw `count` examples of `split`; a question's hash says which split it belongs to.

        Where a dataset has few different questions, they are repeated.
        """
        found: list[Example] = []
        for row in self._create(size=(count + 1) * _TRIES, seed=seed):
            if is_eval(row["question"]) == (split == "eval"):
                self._entries[row["question"]] = row
                found.append(Example(row["question"], str(row["answer"])))
                if len(found) >= count:
                    break
        if not found:
            raise empty(self.name, split)
        return list(itertools.islice(itertools.cycle(found), count))

    def reward(self, example: Example, completion: str) -> float:
        """The dataset's own verdict on the completion."""
        entry = self._entries.get(example.prompt, {"question": example.prompt, "answer": example.answer})
        return float(self._scorer.score_answer(answer=completion.strip(), entry=entry))
