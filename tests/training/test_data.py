from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from rlforget.domains import Example
from rlforget.domains.batches import IGNORED
from rlforget.domains.miniature.tokenizer import CHARACTERS, build_tokenizer
from rlforget.training.data import completion_rows, prompt_rows, reward_function
from tests.training.toy import Sevens

TOKENIZER = build_tokenizer()
texts = st.text(CHARACTERS, min_size=1, max_size=12)
examples = st.lists(st.builds(Example, texts, texts), min_size=1, max_size=6)


class Recorder(Sevens):
    """Remembers what it was asked to score."""

    def __init__(self) -> None:
        self.seen: list[tuple[Example, str]] = []

    def reward(self, example: Example, completion: str) -> float:
        self.seen.append((example, completion))
        return 0.5


@given(given=examples)
def test_sft_scores_the_answer_and_its_end(given: list[Example]) -> None:
    for example, row in zip(given, completion_rows(given, TOKENIZER), strict=True):
        assert TOKENIZER.decode(row["input_ids"]) == example.prompt + example.answer + "<eos>"
        scored = [label for label in row["labels"] if label != IGNORED]
        assert TOKENIZER.decode(scored) == example.answer + "<eos>"
        assert row["labels"][-len(scored) :] == scored == row["input_ids"][-len(scored) :]


@given(given=examples)
def test_grpo_is_given_prompts_and_the_places_of_their_examples(given: list[Example]) -> None:
    rows = prompt_rows(given)
    assert [given[row["index"]].prompt for row in rows] == [row["prompt"] for row in rows]


@given(given=examples, data=st.data())
def test_rewards_see_the_completion_without_its_end(given: list[Example], data: st.DataObject) -> None:
    index = data.draw(st.lists(st.integers(0, len(given) - 1), min_size=1, max_size=5))
    written = [data.draw(texts) for _ in index]
    ends = [data.draw(st.sampled_from(["", "<eos>"])) for _ in index]
    ids: list[Any] = [TOKENIZER(text + end)["input_ids"] for text, end in zip(written, ends, strict=True)]
    domain = Recorder()
    assert reward_function(domain, given, TOKENIZER)(completion_ids=ids, index=index, other=1) == [0.5] * len(index)
    assert domain.seen == [(given[i], text) for i, text in zip(index, written, strict=True)]
