"""The planted circuits are what they are said to be: shown by ablation in plain torch, with none of the package's."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from .ablations import Ablation, answers, effects, tokens
from .models import ALGORITHMS, CASES, HEADS, Planted

KINDS = ("resample", "zero")
each_case = pytest.mark.parametrize(("algorithm", "case"), CASES)


@cache
def exact(algorithm: str) -> Planted:
    """A model that does nothing but what its construction says."""
    return ALGORITHMS[algorithm](0, leak=0.0)


@cache
def leaky(algorithm: str) -> Planted:
    return ALGORITHMS[algorithm](0)


@each_case
def test_the_models_answer_right(algorithm: str, case: str) -> None:
    for planted in (exact(algorithm), leaky(algorithm)):
        task = planted.cases[case].task
        assert torch.equal(answers(planted.model, task), tokens(task)["target"])


@pytest.mark.parametrize("kind", KINDS)
@each_case
def test_exactly_the_heads_of_the_circuit_matter(algorithm: str, case: str, kind: str) -> None:
    planted = exact(algorithm)
    full, found = effects(planted.model, planted.cases[case].task, kind, HEADS)
    truth = planted.truth(case, kind)
    assert float(found[truth].min()) > 0.1 * full
    idle = ~truth
    if "suppressor" in planted.roles:
        idle[planted.roles["suppressor"]] = False
        assert float(found[planted.roles["suppressor"]]) < -0.1 * full
    assert float(found[idle].abs().max()) < 0.002 * full


@pytest.mark.parametrize("kind", KINDS)
@each_case
def test_the_circuit_alone_answers_as_the_whole_model_does(algorithm: str, case: str, kind: str) -> None:
    planted = exact(algorithm)
    ablation = Ablation(planted.model, planted.cases[case].task, kind, HEADS)
    truth = planted.truth(case, kind)
    kept = truth.clone()
    if "suppressor" in planted.roles:  # it takes part, on the wrong side
        kept[planted.roles["suppressor"]] = True
    full = ablation.value(torch.zeros_like(truth))
    assert ablation.value(~kept) == pytest.approx(full, abs=0.02)
    assert ablation.value(truth) < 0.1


@pytest.mark.parametrize("kind", KINDS)
@each_case
def test_a_leak_leaves_the_circuit_ahead(algorithm: str, case: str, kind: str) -> None:
    planted = leaky(algorithm)
    _, found = effects(planted.model, planted.cases[case].task, kind, HEADS)
    truth = planted.truth(case, kind)
    assert float(found[truth].min()) > 2 * float(found[~truth].max())
    assert float(found[~truth].abs().max()) > 0.01, "without a leak the distractors would be told apart by a zero"


@each_case
def test_a_head_that_is_equal_on_both_prompts_is_needed_all_the_same(algorithm: str, case: str) -> None:
    """Why the truth has to name its ablation."""
    planted = exact(algorithm)
    chosen = planted.cases[case]
    assert chosen.resample <= chosen.zero
    for role in chosen.zero - chosen.resample:
        head = planted.roles[role]
        assert abs(float(effects(planted.model, chosen.task, "resample", HEADS)[1][head])) < 0.002
        assert float(effects(planted.model, chosen.task, "zero", HEADS)[1][head]) > 1.0


def test_seeds_move_the_heads() -> None:
    places = {tuple(ALGORITHMS["lookup"](seed, pairs=1).roles.values()) for seed in range(4)}
    assert len(places) > 1
