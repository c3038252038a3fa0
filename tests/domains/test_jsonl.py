"""Domains from files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlforget import domains
from rlforget.domains import Example, JsonlDomain
from rlforget.errors import DomainFileError, EmptyDomainError, RewardError


def half(example: Example, completion: str) -> float:
    return 0.5


def broken(example: Example, completion: str) -> float:
    raise ValueError("no verdict")


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return path


def test_header_and_splits(tmp_path: Path) -> None:
    path = write(
        tmp_path / "capitals.jsonl",
        {"domain": "capitals", "reward": f"{__name__}:half", "max_new_tokens": 7},
        {"prompt": "France?", "answer": "Paris", "split": "train"},
        {"prompt": "Spain?", "answer": "Madrid", "split": "eval", "counterfactual": "Italy?"},
    )
    domain = domains.get(str(path))
    assert (domain.name, domain.max_new_tokens) == ("capitals", 7)
    assert domain.examples(2) == [Example("France?", "Paris")] * 2
    assert domain.examples(1, split="eval") == [Example("Spain?", "Madrid", "Italy?")]
    assert domain.checked_reward(domain.examples(1)[0], "anything") == 0.5


def test_without_a_header_answers_must_match(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", *({"prompt": f"p{i}", "answer": f"a{i}"} for i in range(64)))
    domain = JsonlDomain.from_file(path)
    example = domain.examples(1)[0]
    assert domain.name == "d"
    assert domain.checked_reward(example, f" {example.answer}\n") == 1.0
    assert domain.checked_reward(example, "other") == 0.0
    train, held = ({e.prompt for e in domain.examples(64, split=split)} for split in ("train", "eval"))
    assert train
    assert held
    assert not train & held


def test_every_example_is_drawn_before_one_is_repeated(tmp_path: Path) -> None:
    rows = ({"prompt": f"p{i}", "answer": "a", "split": "train"} for i in range(10))
    domain = JsonlDomain.from_file(write(tmp_path / "d.jsonl", *rows))
    assert len({e.prompt for e in domain.examples(10, seed=5)}) == 10
    assert domain.examples(10, seed=5) != domain.examples(10, seed=6)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (['{"prompt": "p", "answer": "a"\n'], "line 1: expected a JSON object"),
        (["[1]\n"], "line 1: expected a JSON object; found list"),
        ([{"prompt": "p", "answer": "a"}, {"prompt": "q"}], "line 2: expected the key 'answer'"),
        ([{"prompt": "p", "answer": 3}], "line 1: expected a string under 'answer'; found int"),
        ([{"prompt": "p", "answer": "a", "split": "test"}], "split"),
        ([{"reward": "nowhere:f"}, {"prompt": "p", "answer": "a"}], "reward 'nowhere:f'"),
        ([{"max_new_tokens": 0}, {"prompt": "p", "answer": "a"}], "line 1: expected max_new_tokens"),
        ([{"rewrad": "m:f"}, {"prompt": "p", "answer": "a"}], "line 1: .* a header of domain, reward.*'rewrad'"),
        ([{"promt": "p", "answer": "a"}, {"prompt": "q", "answer": "a"}], "line 1: expected an example with a prompt"),
        ([{"reward": 5}, {"prompt": "p", "answer": "a"}], "line 1: expected a string under 'reward'; found int"),
        ([{"domain": None}, {"prompt": "p", "answer": "a"}], "line 1: expected a string under 'domain'"),
        ([{"prompt": "p", "answer": "a", "split": ["train"]}], "split"),
        ([{"prompt": "p", "answer": "a", "split": s} for s in ("train", "eval")], "no prompt in both splits"),
    ],
)
def test_faults_name_the_line_and_what_was_expected(tmp_path: Path, rows: list[object], message: str) -> None:
    with pytest.raises(DomainFileError, match=message):
        JsonlDomain.from_file(write(tmp_path / "d.jsonl", *rows))


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DomainFileError, match=r"nothing\.jsonl.*Check the path"):
        JsonlDomain.from_file(tmp_path / "nothing.jsonl")


def test_empty_domain_is_named(tmp_path: Path) -> None:
    domain = JsonlDomain.from_file(write(tmp_path / "d.jsonl"))
    with pytest.raises(EmptyDomainError, match="domain 'd'"):
        domain.examples(1)


def test_reward_that_raises_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", {"prompt": "p", "answer": "a", "split": "train"})
    domain = JsonlDomain.from_file(path, reward=broken)
    with pytest.raises(RewardError, match="ValueError: no verdict"):
        domain.checked_reward(domain.examples(1)[0], "c")
