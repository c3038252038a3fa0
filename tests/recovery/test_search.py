"""The search for a rollback: what it tries, what it judges by, what it takes, and that the model is as it was."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import rlforget as rf
from rlforget.domains import Domain, Example, Split
from rlforget.errors import (
    ConfigError,
    EmptyDomainError,
    NothingGainedError,
    NothingLostError,
    RewardError,
    UnknownNameError,
    WrongBaseError,
)
from rlforget.recovery import workshop
from rlforget.recovery.candidates import CONTROLS, RULES, candidates
from rlforget.recovery.front import front, knee, missing
from rlforget.recovery.judging import Judge, Scale, share
from tests.recovery.digits import SEVENS, THREES, Digits, Forgetful, forgetful

FEW: dict[str, Any] = {"samples": 8, "validation": 16, "draws": 1, "evaluation": 16, "seed": 3}
QUICK: dict[str, Any] = FEW | {"rules": ["dense", "fisher"], "budgets": [0.02], "lams": [1.0]}


@pytest.fixture(scope="module")
def scene() -> Forgetful:
    return forgetful()


def search(scene: Forgetful, **options: Any) -> rf.Search:
    given = {"restore": [SEVENS], "protect": [THREES], **QUICK, **options}
    return rf.auto_rollback(scene.model, scene.tokenizer, scene.delta, **given)


def bits(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone().view(torch.uint8) for name, value in model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


shares = st.floats(-0.5, 1.5).map(lambda value: round(value, 2))
points = st.lists(st.tuples(shares, shares), min_size=1, max_size=12)


@given(points, st.floats(0, 0.5))
def test_what_is_taken_is_beaten_by_nothing_and_near_the_best(found: list[tuple[float, float]], noise: float) -> None:
    taken = found[knee(found, lambda one, other: noise)]
    assert not any(x > taken[0] and y > taken[1] for x, y in found)
    assert missing(taken) <= min(map(missing, found)) + noise
    assert all(
        (at in front(found)) == (not any(p[0] >= q[0] and p[1] >= q[1] and p != q for p in found))
        for at, q in enumerate(found)
    )


def test_within_the_noise_the_preferred_one_is_taken() -> None:
    assert knee([(0.94, 1.0), (0.97, 0.99)], lambda *_: 0.05) == 0
    assert knee([(0.94, 1.0), (0.97, 0.99)], lambda *_: 0.01) == 1
    assert knee([(0.94, 0.9), (0.97, 0.99)], lambda *_: 0.5) == 1  # the first is exceeded on both
    assert knee([(0.94, 1.0), (0.97, 1.0)], lambda *_: 0.05) == 0
    assert knee([(0.8, 1.4), (0.97, 1.0)], lambda *_: 0.0) == 1  # more than all does not make up for less


def test_the_standard_error_of_a_share_is_its_spread_over_prompts() -> None:
    generator = torch.Generator().manual_seed(0)

    def drawn() -> Any:
        then = {"a": torch.bernoulli(torch.full((200,), 0.8, dtype=torch.float64), generator=generator)}
        now = {"a": torch.bernoulli(then["a"] * 0.4 + 0.1, generator=generator)}
        repaired = {"a": torch.maximum(now["a"], torch.bernoulli(then["a"] * 0.8, generator=generator))}
        return share(now, then, repaired, ["a"])

    found = [drawn() for _ in range(300)]
    spread = float(torch.tensor([one.value for one in found]).std())
    told = sum(one.stderr for one in found) / len(found)
    assert told == pytest.approx(spread, rel=0.15)


def test_shares_run_from_the_state_now_to_the_state_then() -> None:
    then, now = (
        {"a": torch.tensor([1.0, 0.8]), "b": torch.tensor([0.2, 0.0])},
        {
            "a": torch.tensor([0.4, 0.2]),
            "b": torch.tensor([0.6, 0.6]),
        },
    )
    scale = Scale(["a"], ["b"], then, now)
    regained, kept = scale.shares({"a": torch.tensor([0.7, 0.5]), "b": torch.tensor([0.5, 0.45])})
    assert regained.value == pytest.approx(0.5)
    assert kept.value == pytest.approx(0.75)
    assert [scale.shares(one)[at].value for one, at in ((now, 0), (then, 0), (now, 1), (then, 1))] == [0, 1, 1, 0]
    assert scale.whole == {"a": pytest.approx(0.6), "b": pytest.approx(0.5)}
    assert math.isnan(share(now, now, then, ["a"]).value)


def test_every_rule_budget_and_weight_is_a_candidate_once() -> None:
    found = candidates(budgets=[0.01, 0.05])
    assert len(set(found)) == len(found)
    assert list(dict.fromkeys(one.rule for one in found)) == [*RULES, *CONTROLS]
    for rule, lams in (RULES | CONTROLS).items():
        mine = [one for one in found if one.rule == rule]
        assert len(mine) == max(1, len(lams)) * len({one.budget for one in mine})
        assert {one.budget for one in mine} in ({None}, {0.01, 0.05})
    assert {one.lam for one in candidates(["dense"], lams=[3.0]) if not one.control} == {3.0}


def test_a_search_finds_what_gives_back_and_keeps(scene: Forgetful) -> None:
    found = search(scene)
    rules = [trial.candidate.rule for trial in found.trials]
    assert rules == ["dense", "fisher", *CONTROLS]
    assert not any(trial.candidate.control for trial in found.front)
    assert found.chosen.candidate == found.report.candidate
    assert found.report.regained.value > 0.7
    assert found.report.kept.value > 0.7
    control = next(trial for trial in found.trials if trial.candidate.rule == "random_subspace")
    assert abs(control.regained.value) < 0.2
    assert found.then["M7"] > found.now["M7"] + 0.5
    json.dumps(found.to_dict(), allow_nan=False)


def test_what_is_found_does_what_the_report_says(scene: Forgetful) -> None:
    found = search(scene)
    with rf.rollback(scene.model, scene.delta, found.what, seed=found.seed) as undo:
        asked = {SEVENS: SEVENS.examples(64, seed=3, split="eval"), THREES: THREES.examples(64, seed=3, split="eval")}
        asked = {domain: list({e.prompt: e for e in examples}.values())[:16] for domain, examples in asked.items()}
        answers = Judge(scene.tokenizer, asked, seed=3).answers(scene.model)
    assert {name: float(values.mean()) for name, values in answers.items()} == found.report.rewards
    assert undo.report.written == found.report.written


def test_a_search_leaves_every_bit_and_repeats(scene: Forgetful) -> None:
    held = bits(scene.model)
    first = search(scene)
    assert same(held, bits(scene.model))
    assert search(scene).to_dict() == first.to_dict()
    assert search(scene, seed=4).to_dict() != first.to_dict()


class Noted(Digits):
    """Notes what is asked, by split as the domain gave it out, and fails on demand."""

    def __init__(self, *, fail_after: int | None = None) -> None:
        super().__init__("M", "7")
        self.asked: list[str] = []
        self._fail_after = fail_after

    def reward(self, example: Example, completion: str) -> float:
        self.asked.append(example.prompt)
        if self._fail_after is not None and len(self.asked) > self._fail_after:
            raise ValueError("no more")
        return super().reward(example, completion)


def test_bits_are_back_when_a_reward_fails_in_the_middle(scene: Forgetful) -> None:
    held = bits(scene.model)
    for calls in (5, 20, 40, 70):  # before, after, a candidate, another one
        with pytest.raises(RewardError, match="no more"):
            search(scene, restore=[Noted(fail_after=calls)])
        assert same(held, bits(scene.model))


def test_the_three_sets_of_prompts_have_nothing_in_common(scene: Forgetful) -> None:
    domain = Noted()
    found = search(scene, restore=[domain], samples=64, validation=64)
    measured = {example.prompt for example in domain.examples(64, seed=3)}
    in_validation = (len(found.trials) + 2) * 64
    validation, report = set(domain.asked[:in_validation]), set(domain.asked[in_validation:])
    assert len(validation) == 64
    assert len(report) == 16
    assert not measured & validation
    assert all(prompt[1] in "01234" for prompt in validation)
    assert all(prompt[1] in "56789" for prompt in report)


class Leaky(Digits):
    """A domain of few prompts that makes no difference between its splits."""

    def __init__(self, few: int) -> None:
        super().__init__("M", "7")
        self._few = few

    def examples(self, count: int, *, seed: int = 0, split: Split = "train") -> list[Example]:
        pool = super().examples(self._few, seed=0)
        return [pool[(seed + at) % len(pool)] for at in range(count)]


def test_a_report_on_prompts_that_were_tuned_on_is_refused(scene: Forgetful) -> None:
    said: list[str] = []
    with pytest.raises(EmptyDomainError, match="'eval' that nothing was measured on"):
        search(scene, restore=[Leaky(30)], say=said.append)
    assert not said  # before the long work
    with pytest.raises(EmptyDomainError, match=r"'train' that nothing was measured on.*found 12"):
        search(scene, restore=[Leaky(20)])


class Same(Domain):
    """A skill that nothing changes."""

    name = "same"
    max_new_tokens = 2

    def __init__(self) -> None:
        self._prompts = Digits("Q", "5")

    def examples(self, count: int, *, seed: int = 0, split: Split = "train") -> list[Example]:
        return self._prompts.examples(count, seed=seed, split=split)

    def reward(self, example: Example, completion: str) -> float:
        return 0.5


def test_a_domain_that_lost_or_gained_nothing_is_named(scene: Forgetful) -> None:
    with pytest.raises(NothingLostError, match=r"same lost nothing: 0\.500 → 0\.500"):
        search(scene, restore=[Same()])
    with pytest.raises(NothingLostError, match="Q3 lost nothing"):
        search(scene, restore=[THREES], protect=[SEVENS])
    with pytest.raises(NothingGainedError, match=r"same gained nothing: 0\.500 → 0\.500"):
        search(scene, protect=[Same()])
    found = search(scene, protect=[THREES, Same()])
    assert found.protect == ("Q3",)
    assert set(found.left_out) == {"same"}
    assert found.report.rewards["same"] == 0.5


def test_what_cannot_be_searched_is_refused(scene: Forgetful) -> None:
    refused: tuple[tuple[dict[str, Any], type[Exception], str], ...] = (
        ({"restore": []}, ConfigError, "restore"),
        ({"protect": []}, ConfigError, "protect"),
        ({"protect": [SEVENS]}, ConfigError, "'M7' twice"),
        ({"rules": ["fishy"]}, UnknownNameError, "dense"),
        ({"rules": ["random"]}, UnknownNameError, "dense"),
        ({"rules": []}, ConfigError, "one rule or more"),
        ({"budgets": [0.0]}, ConfigError, "shares in"),
        ({"lams": [-1.0]}, ConfigError, "positive"),
        ({"validation": 1}, ConfigError, "validation"),
    )
    for options, kind, said in refused:
        with pytest.raises(kind, match=said):
            search(scene, **options)
    other = copy.deepcopy(scene.earlier)
    with pytest.raises(WrongBaseError):
        rf.auto_rollback(other, scene.tokenizer, scene.delta, restore=[SEVENS], protect=[THREES], **QUICK)


def test_every_piece_is_measured_once(scene: Forgetful, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def counted(name: str) -> Any:
        original = getattr(workshop, name)

        def call(*args: Any, **options: Any) -> Any:
            calls.append(name)
            return original(*args, **options)

        return call

    for name in ("fisher", "conflict_subspace"):
        monkeypatch.setattr(workshop, name, counted(name))
    search(scene, rules=["dense", "subspace", "fisher", "two_fisher"], budgets=[0.01, 0.02])
    assert calls.count("fisher") == 2  # one a domain
    assert calls.count("conflict_subspace") == 2  # and a random one
