"""Domains from reasoning-gym."""

from __future__ import annotations

import pytest

from rlforget import domains
from rlforget.errors import EmptyDomainError, UnknownNameError

pytest.importorskip("reasoning_gym", reason="the extra reasoning-gym is not installed")


def test_a_dataset_by_name_with_its_own_verifier() -> None:
    domain = domains.get("reasoning-gym:chain_sum")
    examples = domain.examples(20, seed=1)
    assert examples == domain.examples(20, seed=1)
    assert not {e.prompt for e in examples} & {e.prompt for e in domain.examples(20, seed=1, split="eval")}
    assert domain.checked_reward(examples[0], examples[0].answer) == 1.0
    assert domain.checked_reward(examples[0], "no number") < 1.0


def test_few_questions_are_repeated_and_none_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    domain = domains.get("reasoning-gym:chain_sum")
    row = {"question": domain.examples(1)[0].prompt, "answer": "1"}  # of the training split
    monkeypatch.setattr(domain, "_create", lambda size, seed: [row])
    assert [e.prompt for e in domain.examples(3)] == [row["question"]] * 3
    with pytest.raises(EmptyDomainError, match="chain_sum"):
        domain.examples(3, split="eval")


def test_unknown_dataset_is_named() -> None:
    with pytest.raises(UnknownNameError, match="chain_summ"):
        domains.get("reasoning-gym:chain_summ")
