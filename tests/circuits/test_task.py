"""Tasks as tokens, and the metrics on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlforget.circuits import METRICS, Pair, Task, TaskBatch
from rlforget.circuits.ablation import replaced_positions
from rlforget.circuits.alignment import align
from rlforget.domains import JsonlDomain, miniature
from rlforget.errors import ConfigError, DomainFileError, EmptyDomainError, TaskError, UnknownNameError
from tests.circuits.tiny_models import task_of_ids

IDS = Pair((1, 2, 3), (1, 4, 3), (5, 6), (5, 7))


def encode(*pairs: Pair, **options: Any) -> TaskBatch:
    (batch,) = Task("t", list(pairs)).encode(None, 99, **options)
    return batch


class Letters:
    """A tokenizer of one token a letter, which begins every text with token 0 and has no pad token."""

    pad_token_id = None
    eos_token_id = 27

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [0] * add_special_tokens + [ord(c) - 96 for c in text]}


def test_the_target_s_own_tokens_follow_both_prompts() -> None:
    batch = encode(IDS)
    assert batch.clean_ids.tolist() == [[1, 2, 3, 5]]
    assert batch.counterfactual_ids.tolist() == [[1, 4, 3, 5]]
    assert batch.positions.tolist() == [[2, 3]]
    assert (batch.targets.tolist(), batch.distractors.tolist()) == ([[5, 6]], [[5, 7]])
    assert batch.kept == 2


def test_both_prompts_are_padded_alike_on_either_side() -> None:
    longer = Pair((1, 2, 3, 4, 8), (1, 2, 3, 4, 9), (5,), (6,))
    left, right = encode(IDS, longer), encode(IDS, longer, padding_side="right")
    assert left.attention_mask.tolist() == [[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]]
    assert right.attention_mask.tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert left.clean_ids.tolist() == [[0, 1, 2, 3, 5], [1, 2, 3, 4, 8]]
    assert (left.positions[0].tolist(), right.positions[0].tolist()) == ([3, 4], [2, 3])
    assert left.answer_mask.tolist() == right.answer_mask.tolist() == [[True, True], [True, False]]
    assert (left.kept, right.kept) == (2, 3)


def test_a_shorter_distractor_is_the_target_after_its_end() -> None:
    batch = encode(Pair((1,), (2,), (5, 6, 7), (4,)))
    assert batch.distractors.tolist() == [[4, 6, 7]]


def test_texts_are_encoded_as_prompts_and_answers_without_a_pad_token() -> None:
    pairs = [Pair("ab", "ac", "d", "e"), Pair("abc", "abd", "e", "f")]
    (batch,) = Task("t", pairs).encode(Letters())
    assert batch.clean_ids.tolist() == [[27, 0, 1, 2], [0, 1, 2, 3]]  # padded with the end token
    assert batch.attention_mask.tolist() == [[0, 1, 1, 1], [1, 1, 1, 1]]
    assert batch.targets.tolist() == [[4], [5]]


@given(st.integers(1, 9), st.integers(1, 5))
def test_batches_hold_every_pair_once_and_in_order(count: int, size: int) -> None:
    task = task_of_ids(count)
    batches = list(task.encode(None, size))
    assert [len(batch) for batch in batches[:-1]] == [size] * (len(batches) - 1)
    rows = [row for batch in batches for row in _rows(batch)]
    assert rows == [(tuple(p.clean) + tuple(p.target)[:-1], tuple(p.target)) for p in task.pairs]


def _rows(batch: TaskBatch) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    return [
        (
            tuple(batch.clean_ids[i][batch.attention_mask[i].bool()].tolist()),
            tuple(batch.targets[i][batch.answer_mask[i]].tolist()),
        )
        for i in range(len(batch))
    ]


def test_counterfactuals_that_cannot_be_aligned_are_named() -> None:
    pairs = [Pair("ab", "ac", "d", "e"), Pair("ab", "abc", "d", "e")]
    found = r"task 't', pair 1: .*found 3 and 4 tokens, which differ in 3:3 and 3:4, one of them empty: 'ab' and 'abc'"
    with pytest.raises(TaskError, match=found):
        list(Task("t", pairs).encode(Letters()))


def test_pairs_name_their_number_in_later_batches_too() -> None:
    pairs = [Pair((1,), (2,), (3,), (4,))] * 3 + [Pair((1,), (1, 3), (3,), (4,))]
    with pytest.raises(TaskError, match="pair 3"):
        list(Task("t", pairs).encode(None, 2))


def test_prompts_of_two_lengths_end_together_on_either_side() -> None:
    pair = Pair((1, 2, 3), (1, 8, 9, 3), (5, 6), (7, 6))  # 2 stands against 8 9
    wide = Pair((1, 2, 3, 4, 4, 4), (1, 2, 3, 4, 4, 5), (5,), (6,))
    for side in ("left", "right"):
        batch = encode(pair, wide, padding_side=side)
        first = 0 if side == "right" else 1
        assert batch.counterfactual_ids[0, first : first + 5].tolist() == [1, 8, 9, 3, 5]
        assert batch.clean_ids[0, first + 1 : first + 5].tolist() == [1, 2, 3, 5]
        assert batch.attention_mask.sum(1).tolist() == [4, 6]
        assert batch.counterfactual_mask.sum(1).tolist() == [5, 6]
        assert batch.source_ids[0, first + 1 : first + 5].tolist() == [1, 9, 3, 5]
        assert batch.positions[0].tolist() == [first + 3, first + 4]
        assert batch.prompt_starts.tolist() == [first + 1, 0]
        assert not batch.of_one_length
        assert batch.aligned(batch.counterfactual_ids).tolist() == batch.source_ids.tolist()


@pytest.mark.parametrize(
    ("clean", "counterfactual", "spans", "expected"),
    [
        ("abc", "axc", (), [0, 1, 2]),
        ("abc", "xyz", (), [0, 1, 2]),
        ("abc", "axyc", (), [0, 2, 3]),  # the last tokens of what differs stand for each other
        ("axyzc", "abc", (), [0, 1, 1, 1, 2]),
        ("pabq", "pxyzq", [((1, 2), (1, 3))], [0, 2, 3, 4]),
        ("abcd", "abcd", [((0, 1), (0, 1)), ((2, 4), (2, 4))], [0, 1, 2, 3]),
        ("aXbYc", "aXXbYYc", [((1, 2), (1, 3)), ((3, 4), (4, 6))], [0, 2, 3, 5, 6]),
    ],
)
def test_tokens_stand_for_each_other_by_spans(clean: str, counterfactual: str, spans: Any, expected: list[int]) -> None:
    assert align(_codes(clean), _codes(counterfactual), spans) == expected


@pytest.mark.parametrize(
    ("clean", "counterfactual", "spans", "found"),
    [
        ("ab", "abc", (), "empty"),
        ("aab", "aaab", (), "empty"),  # which of them was added, nobody can say
        ("abc", "axyc", [((1, 1), (1, 2))], "empty"),
        ("abc", "axyc", [((1, 2), (2, 3))], "do not fit"),
        ("abc", "axyc", [((1, 2), (1, 9))], "do not fit"),
        ("abc", "axyc", [((-1, 2), (-1, 3))], "do not fit"),
        ("aXbYc", "aXXbYYc", [((3, 4), (4, 6)), ((1, 2), (1, 3))], "do not fit"),
        ("abc", "axyc", [((1, 2), (1, 2))], "after the last span"),
    ],
)
def test_spans_that_do_not_fit_are_refused(clean: str, counterfactual: str, spans: Any, found: str) -> None:
    with pytest.raises(ValueError, match=found):
        align(_codes(clean), _codes(counterfactual), spans)


def _codes(text: str) -> list[int]:
    return [ord(letter) for letter in text]


@pytest.mark.parametrize(
    ("pair", "found"),
    [
        (Pair((1,), (2,), (3, 4), (3, 4)), "a target and a distractor that differ"),
        (Pair((1,), (2,), (3, 4), (3, 4, 5)), "a target and a distractor that differ"),
        (Pair((1,), (2,), (), (3,)), "tokens in 'target'"),
        (Pair((1,), (2,), (3,), ()), "tokens in 'distractor'"),
        (Pair((), (), (3,), (4,)), "tokens in 'clean'"),
    ],
)
def test_pairs_that_cannot_be_compared_are_refused(pair: Pair, found: str) -> None:
    with pytest.raises(TaskError, match=found):
        encode(pair)


def test_text_needs_a_tokenizer_and_batches_a_size() -> None:
    with pytest.raises(ConfigError, match="tokenizer"):
        list(Task("t", [Pair("a", "b", "c", "d")]).encode(None))
    with pytest.raises(ConfigError, match="batch_size"):
        list(Task("t", [IDS]).encode(None, 0))


@pytest.mark.parametrize("domain", ["code", "math", "qa", "writing", "science"])
def test_every_built_in_domain_is_a_task(domain: str) -> None:
    _, tokenizer = miniature.load()
    task = Task.from_domain(domain, count=20, seed=3)
    assert task == Task.from_domain(domain, count=20, seed=3)
    assert task.name == domain
    assert len(task) >= 18
    (batch,) = task.encode(tokenizer, 20)
    assert bool((batch.targets != batch.distractors).any(1).all())
    assert bool((batch.clean_ids != batch.counterfactual_ids).any(1).all())


def test_a_domain_without_counterfactuals_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "plain.jsonl"
    file.write_text(json.dumps({"prompt": "a", "answer": "b", "split": "eval"}))
    with pytest.raises(EmptyDomainError, match="counterfactual"):
        Task.from_domain(JsonlDomain.from_file(file))


def test_tasks_are_read_from_lines(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    row = {"clean": "ab", "counterfactual": "ac", "target": [1, 2], "distractor": "e"}
    file.write_text(json.dumps(row) + "\n\n")
    assert Task.from_jsonl(file) == Task("mine", [Pair("ab", "ac", [1, 2], "e")])
    file.write_text(json.dumps(row | {"counterfactual": "acd", "spans": [[[1, 2], [1, 3]]]}))
    assert Task.from_jsonl(file) == Task("mine", [Pair("ab", "acd", [1, 2], "e", (((1, 2), (1, 3)),))])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "at least one pair"),
        ("{", r"line 1: expected a JSON object"),
        ("[1]", "found list"),
        ('\n{"clean": "a", "counterfactual": "b", "target": "c"}', "line 2: .*'distractor'"),
        ('{"clean": "a", "counterfactual": "b", "target": [true], "distractor": "d"}', "'target'"),
        ('{"clean": "a", "counterfactual": "b", "target": "c", "distractor": "d", "spans": [[1, 2]]}', "'spans'"),
    ],
)
def test_lines_that_are_no_pairs_are_refused(tmp_path: Path, text: str, found: str) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text(text)
    with pytest.raises(DomainFileError, match=found):
        Task.from_jsonl(file)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DomainFileError, match="readable"):
        Task.from_jsonl(tmp_path / "none.jsonl")


def test_metrics_equal_their_definitions() -> None:
    batch = encode(IDS, Pair((1, 2, 3, 4, 8), (1, 2, 3, 4, 9), (5,), (6,)))
    logits = torch.randn(2, 5, 11, generator=torch.Generator().manual_seed(0))
    log_p = logits.log_softmax(-1)
    two, one = (log_p[0, 3, 5] + log_p[0, 4, 6]) / 2, log_p[1, 4, 5]
    torch.testing.assert_close(METRICS["log_prob"](logits, batch), torch.stack([two, one]))
    torch.testing.assert_close(METRICS["probability"](logits, batch), torch.stack([two, one]).exp())
    # The first answer token is the same in target and distractor, so it says nothing.
    differences = torch.stack([log_p[0, 4, 6] - log_p[0, 4, 7], log_p[1, 4, 5] - log_p[1, 4, 6]])
    torch.testing.assert_close(METRICS["log_prob_difference"](logits, batch), differences)


@pytest.mark.parametrize("metric", METRICS)
def test_metrics_take_the_last_positions_alone(metric: str) -> None:
    batch = encode(IDS, Pair((1, 2, 3, 4, 8), (1, 2, 3, 4, 9), (5,), (6,)))
    logits = torch.randn(2, 5, 11, generator=torch.Generator().manual_seed(0))
    assert torch.equal(METRICS[metric](logits[:, -batch.kept :], batch), METRICS[metric](logits, batch))


def test_unknown_metrics_are_refused() -> None:
    from rlforget.circuits.metrics import get

    with pytest.raises(UnknownNameError, match="log_prob_difference"):
        get("accuracy")


def test_positions_leave_padding_out_and_count_from_the_prompt() -> None:
    batch = encode(IDS, Pair((1, 2, 3, 4, 8), (1, 2, 3, 4, 9), (5,), (6,)))
    assert torch.equal(replaced_positions(batch, "all"), batch.attention_mask.bool())
    assert replaced_positions(batch, "last").int().tolist() == [[0, 0, 0, 1, 1], [0, 0, 0, 0, 1]]
    assert replaced_positions(batch, [(0, 1)]).int().tolist() == [[0, 1, 0, 0, 0], [1, 0, 0, 0, 0]]
    assert replaced_positions(batch, [(-2, 99)]).int().tolist() == [[0, 0, 1, 1, 0], [0, 0, 0, 1, 1]]
    assert replaced_positions(batch, [(0, 1), (2, -1)]).int().tolist() == [[0, 1, 0, 0, 0], [1, 0, 1, 1, 0]]


@pytest.mark.parametrize("positions", ["first", [(9, 12)], [(1, 2, 3)], [1]])
def test_positions_that_are_none_are_refused(positions: Any) -> None:
    with pytest.raises(ConfigError, match="positions"):
        replaced_positions(encode(IDS), positions)
