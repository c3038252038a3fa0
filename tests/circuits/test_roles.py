"""Each head's part, and what greedy removal leaves."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rlforget.circuits.finding import find
from rlforget.circuits.judging import evaluate_circuit
from rlforget.circuits.minimality import minimal
from rlforget.circuits.roles import necessity, sufficiency
from rlforget.circuits.task import Task
from rlforget.errors import ConfigError, UndefinedCircuitError
from tests.circuits.tiny_models import task_of_ids, tiny

SHAPE = (2, 4)


def only(*heads: tuple[int, int]) -> Tensor:
    mask = torch.zeros(SHAPE, dtype=torch.bool)
    for layer, head in heads:
        mask[layer, head] = True
    return mask


@pytest.mark.parametrize("ablation", ["resample", "zero"])
def test_necessity_is_what_exact_patching_measures(ablation: str) -> None:
    model, task = tiny("qwen2"), task_of_ids()
    lost = necessity(model, task, ablation=ablation, normalise=False)
    exact = find(model, task, "patching", ablation=ablation).scores.double()
    torch.testing.assert_close(lost, exact, rtol=1e-3, atol=1e-5)
    whole = evaluate_circuit(model, task, only(), ablation=ablation)
    torch.testing.assert_close(necessity(model, task, ablation=ablation), lost / (whole.full - whole.empty))


def test_sufficiency_is_the_faithfulness_of_a_single_head() -> None:
    model, task = tiny("gpt2"), task_of_ids()
    found = sufficiency(model, task)
    for layer, head in ((0, 0), (0, 3), (1, 2)):
        expected = evaluate_circuit(model, task, only((layer, head))).normalised
        assert float(found[layer, head]) == pytest.approx(expected, abs=1e-4)


def test_necessity_within_a_circuit() -> None:
    model, task, circuit = tiny("qwen2"), task_of_ids(), only((0, 1), (1, 2), (1, 3))
    found = necessity(model, task, within=circuit)
    assert found[~circuit].eq(0).all()
    whole, less = (evaluate_circuit(model, task, mask).normalised for mask in (circuit, only((0, 1), (1, 3))))
    assert float(found[1, 2]) == pytest.approx(whole - less, abs=1e-4)


@pytest.mark.parametrize("at_once", [1, 3])
def test_no_head_of_a_minimal_circuit_can_go(at_once: int) -> None:
    model, task = tiny("qwen2"), task_of_ids()
    found = minimal(model, task, torch.ones(SHAPE, dtype=torch.bool), tolerance=0.2, at_once=at_once)
    assert len(found.removed) + int(found.mask.sum()) == 8
    assert not found.was_minimal
    assert not any(found.mask[layer, head] for layer, head in found.removed)
    left = evaluate_circuit(model, task, found.mask).normalised
    assert left == pytest.approx(found.faithfulness[-1], abs=1e-4)
    assert left >= found.floor - 1e-6
    for layer, head in found.mask.nonzero().tolist():
        assert evaluate_circuit(model, task, found.mask & ~only((layer, head))).normalised < found.floor


def test_each_round_drops_the_head_that_is_missed_least() -> None:
    model, task = tiny("gpt2"), task_of_ids()
    whole = torch.ones(SHAPE, dtype=torch.bool)
    found = minimal(model, task, whole, tolerance=10.0)
    first = necessity(model, task).flatten().argmin()
    assert found.removed[0] == divmod(int(first), 4)
    assert found.mask.sum() == 0  # the floor is far below an empty circuit
    assert found.faithfulness[-1] == pytest.approx(0.0, abs=1e-6)


def test_a_minimal_circuit_is_left_alone() -> None:
    model, task = tiny("qwen2"), task_of_ids()
    left = minimal(model, task, torch.ones(SHAPE, dtype=torch.bool), tolerance=0.2)
    again = minimal(model, task, left.mask, tolerance=0.0)
    assert again.was_minimal == all(
        evaluate_circuit(model, task, left.mask & ~only((layer, head))).normalised < again.floor
        for layer, head in left.mask.nonzero().tolist()
    )


def test_bad_input_is_named() -> None:
    model, task = tiny("qwen2"), task_of_ids()
    whole = torch.ones(SHAPE, dtype=torch.bool)
    with pytest.raises(ConfigError):
        minimal(model, task, whole, tolerance=-0.1)
    with pytest.raises(ConfigError):
        minimal(model, task, whole, at_once=0)
    with pytest.raises(ConfigError):
        necessity(model, task, within=torch.ones(3, 4, dtype=torch.bool))
    same = Task("same", [type(p)(p.clean, p.clean, p.target, p.distractor) for p in task.pairs])
    with pytest.raises(UndefinedCircuitError):
        sufficiency(model, same)
