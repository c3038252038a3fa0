"""The five built-in domains: seeded, disjoint, verifiable, and readable by the miniature."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlforget import domains
from rlforget.domains.miniature.tokenizer import CHARACTERS
from rlforget.errors import RewardError, UnknownNameError

NAMES = sorted(domains.BUILT_IN)


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_gives_the_same_examples_and_another_seed_others(name: str) -> None:
    domain = domains.get(name)
    assert domain.examples(50, seed=3) == domain.examples(50, seed=3)
    assert domain.examples(50, seed=3) != domain.examples(50, seed=4)


@pytest.mark.parametrize("name", NAMES)
def test_no_prompt_is_in_both_splits(name: str) -> None:
    domain = domains.get(name)
    train = {e.prompt for seed in range(3) for e in domain.examples(1000, seed=seed)}
    evaluation = {e.prompt for e in domain.examples(1000, split="eval")}
    assert len(evaluation) > 500
    assert not train & evaluation


@pytest.mark.parametrize("name", NAMES)
def test_gold_answer_earns_everything_and_fits_the_completion_length(name: str) -> None:
    domain = domains.get(name)
    for example in domain.examples(200):
        assert domain.checked_reward(example, example.answer) == 1.0
        assert len(example.answer) + 1 <= domain.max_new_tokens  # one character a token, and the end token
        assert set(example.prompt + example.answer + example.counterfactual) <= set(CHARACTERS)


@pytest.mark.parametrize("name", NAMES)
def test_counterfactual_has_the_same_length_and_another_answer(name: str) -> None:
    domain = domains.get(name)
    for example in domain.examples(200):
        assert len(example.counterfactual) == len(example.prompt)
        assert example.counterfactual != example.prompt
        assert example.counterfactual_answer != example.answer
        assert domain.reward(example, example.counterfactual_answer) < 1.0


@given(st.sampled_from(NAMES), st.text(alphabet=CHARACTERS, max_size=20), st.integers(0, 9))
def test_every_completion_has_a_reward_in_the_unit_interval(name: str, completion: str, which: int) -> None:
    domain = domains.get(name)
    assert 0.0 <= domain.checked_reward(domain.examples(10)[which], completion) <= 1.0


def test_math_is_the_running_sum_modulo_ten() -> None:
    for example in domains.get("math").examples(100):
        chain, total, results = example.prompt[1:-1], int(example.prompt[1]), ""
        for sign, digit in zip(chain[1::2], chain[2::2], strict=True):
            total += int(digit) if sign == "+" else -int(digit)
            results += str(total % 10)
        assert example.answer == results


def test_code_is_what_python_computes() -> None:
    for example in domains.get("code").examples(100):
        scope: dict[str, int] = {}
        exec(example.prompt[1:-1], scope)  # the domain's programs are Python programs
        names = [line[0] for line in example.prompt[1:-1].split(";")]
        assert example.answer == "".join(str(scope[name] % 10) for name in names)


def test_science_is_the_running_mass_modulo_ten() -> None:
    for example in domains.get("science").examples(100):
        table, molecule = example.prompt[1:-1].split(":")
        masses = dict(zip(table[::2], map(int, table[1::2]), strict=True))
        running = [sum(masses[atom] for atom in molecule[: i + 1]) % 10 for i in range(len(molecule))]
        assert example.answer == "".join(map(str, running))


def test_partial_answers_earn_partial_rewards() -> None:
    math = domains.get("math")
    example = math.examples(1)[0]
    assert math.reward(example, example.answer[:2]) == pytest.approx(2 / 3)
    assert math.reward(example, example.answer + "0") == pytest.approx(3 / 4)
    assert math.reward(example, "") == 0.0


def test_writing_rewards_coverage_rhyme_distinctness_and_length() -> None:
    writing = domains.get("writing")
    example = domains.Example("Wbkt:n=", "ban ken tin")
    assert writing.reward(example, "ban ken tin") == 1.0
    assert writing.reward(example, "ban ken pin") == pytest.approx(2 / 3)  # no t
    assert writing.reward(example, "ban ken tip") == pytest.approx(2 / 3)  # no rhyme
    assert writing.reward(example, "tan bkn tan") == pytest.approx(2 / 3)  # a word twice
    assert writing.reward(example, "bakten") == pytest.approx(1 / 3)  # one word
    assert writing.reward(example, "") == 0.0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.1, 1.1, "1", None])
def test_reward_that_is_no_number_in_the_unit_interval_is_named(value: object) -> None:
    class Bad(domains.Domain):
        name, max_new_tokens = "bad", 1

        def examples(self, count: int, *, seed: int = 0, split: domains.Split = "train") -> list[domains.Example]:
            return [domains.Example("p", "a")] * count

        def reward(self, example: domains.Example, completion: str) -> float:
            return value  # type: ignore[return-value]

    with pytest.raises(RewardError, match=r"'bad' on prompt 'p'.*number in \[0, 1\]"):
        Bad().checked_reward(domains.Example("p", "a"), "c")


@pytest.mark.parametrize("value", [True, 1, np.float32(0.5), np.float64(0.5), np.int64(0)])
def test_a_reward_may_be_any_number(value: Any) -> None:
    class Fair(type(domains.get("math"))):  # type: ignore[misc]
        def reward(self, example: domains.Example, completion: str) -> float:
            return value  # type: ignore[no-any-return]

    found = Fair().checked_reward(domains.Example("p", "a"), "c")
    assert (type(found), found) == (float, float(value))


def test_unknown_domain_lists_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match="code, math, qa, writing, science"):
        domains.get("maths")
