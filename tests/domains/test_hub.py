"""Domains from datasets, read by the real library from a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlforget.domains import HubDomain
from rlforget.errors import DomainFileError

ROWS = [
    {"id": k, "ask": f"What is {k}+1?", "options": [str(k), str(k + 1)], "meta": {"key": "B", "note": "x"}}
    for k in range(80)
]
LETTERED: dict[str, Any] = {
    "prompt": "{ask}\n{options!l}\nAnswer in {{braces}}:",
    "answer": "{meta[key]}",
    "reward": "rlforget.domains.rewards:multiple_choice",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    held = tmp_path / "data"
    held.mkdir()
    for split, rows in (("train", ROWS), ("test", ROWS[:5])):
        (held / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(held)


def test_rows_become_examples(folder: str) -> None:
    domain = HubDomain("sums", folder, **LETTERED)
    example = next(e for e in domain.examples(80) if e.prompt.startswith("What is 7+1?"))
    assert example.prompt == "What is 7+1?\nA) 7\nB) 8\nAnswer in {braces}:"
    assert example.answer == "B"
    assert domain.checked_reward(example, "The answer is B") == 1
    assert domain.checked_reward(example, "A and B") == 0


def test_splits_are_apart(folder: str) -> None:
    domain = HubDomain("sums", folder, **LETTERED)
    train, held = ({e.prompt for e in domain.examples(200, split=split)} for split in ("train", "eval"))
    assert len(train) + len(held) == 80
    assert train.isdisjoint(held)
    named = HubDomain("sums", folder, evaluation_split="test", **LETTERED)
    assert (named.size("train"), named.size("eval")) == (75, 5)
    few = HubDomain("sums", folder, rows=16, **LETTERED)
    assert few.size("train") + few.size("eval") == 16  # type: ignore[operator]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompt": "{question}"}, "templates over the columns id, ask, options, meta; found KeyError"),
        ({"prompt": "{options[5]}"}, "found IndexError"),
        ({"prompt": "{ask"}, "found ValueError"),
        ({"split": "validation"}, "split 'validation'"),
        ({"dataset": "/no/such/folder"}, "split 'train'"),
    ],
)
def test_what_does_not_fit_is_named(folder: str, changes: dict[str, Any], said: str) -> None:
    domain = HubDomain("sums", **{"dataset": folder, **LETTERED, **changes})
    with pytest.raises(DomainFileError, match=said):
        domain.examples(1)


def test_nothing_is_fetched_before_it_is_asked_for() -> None:
    HubDomain("sums", "nobody/no-such-dataset", **LETTERED)
    with pytest.raises(DomainFileError, match="reward"):
        HubDomain("sums", "nobody/no-such-dataset", prompt="{x}", reward="no.such:thing")
