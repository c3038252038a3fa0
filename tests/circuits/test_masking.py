"""Differential binary masking, on the miniature's own circuits and in its conventions."""

from __future__ import annotations

import copy
import json
from functools import cache

import pytest
import torch
from torch import nn

from rlforget.circuits.circuit import Circuit
from rlforget.circuits.finding import find
from rlforget.circuits.judging import evaluate_circuit
from rlforget.circuits.roles import necessity
from rlforget.circuits.task import Task
from rlforget.domains import miniature
from rlforget.errors import ConfigError
from tests.circuits.tiny_models import task_of_ids, tiny

QUICK = {"steps": 60, "learning_rate": 0.2, "lambdas": (0.05, 0.3)}


@cache
def the_miniature() -> tuple[nn.Module, object, Task]:
    model, tokenizer = miniature.load()
    return model, tokenizer, Task.from_domain("math", count=16)


@cache
def found(**options: object) -> Circuit:
    """Search the miniature; options are hashable."""
    model, tokenizer, task = the_miniature()
    return find(model, task, "masking", tokenizer=tokenizer, **{**QUICK, **options})


def test_it_finds_the_heads_that_removal_shows_to_be_needed() -> None:
    model, tokenizer, task = the_miniature()
    needed = necessity(model, task, tokenizer=tokenizer, metric="log_prob") > 0.1
    assert int(needed.sum()) == 3
    circuit = found()
    assert float(circuit.scores[needed].min()) > float(circuit.scores[~needed].max())
    assert bool((circuit.mask <= needed).all())
    kept = evaluate_circuit(model, task, circuit.mask, tokenizer=tokenizer, metric="log_prob")
    chosen = next(row for row in circuit.settings["sweep"] if row["lambda"] == circuit.settings["lambda"])
    assert kept.normalised == pytest.approx(chosen["faithfulness"], abs=1e-3)
    assert kept.normalised > 0.9


def test_gates_end_binary_and_the_schedule_is_kept() -> None:
    circuit = found()
    sweep, temperatures = circuit.settings["sweep"], circuit.settings["temperature"]
    assert all(row["binary"] > 0.9 for row in sweep)
    assert (len(temperatures), temperatures[0], temperatures[-1]) == (60, 1.0, pytest.approx(0.1))
    assert temperatures == sorted(temperatures, reverse=True)
    assert bool(((circuit.scores >= 0) & (circuit.scores <= 1)).all())
    json.dumps(circuit.to_dict())


def test_a_dearer_head_is_kept_less() -> None:
    circuit = found(lambdas=(0.02, 0.3, 50.0))
    sizes = [row["size"] for row in circuit.settings["sweep"]]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == 0
    assert circuit.size > 0  # the dearest is not faithful, and not chosen


def test_what_an_interchange_must_carry_is_less_than_what_must_be_kept() -> None:
    carried = found(convention="interchange")
    assert 0 < carried.size < found().size
    chosen = next(row for row in carried.settings["sweep"] if row["lambda"] == carried.settings["lambda"])
    assert chosen["faithfulness"] > 0.9  # with those heads alone set to what they are on the clean prompt


def test_the_seed_is_what_varies() -> None:
    model, task = tiny("qwen2"), task_of_ids()
    one, again, other = (find(model, task, "masking", steps=30, seed=seed, lambdas=[0.01]).scores for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_seeds_are_averaged() -> None:
    model, task = tiny("qwen2"), task_of_ids()
    options = {"steps": 15, "lambdas": [0.01]}
    parts = [find(model, task, "masking", seed=seed, **options).scores for seed in (4, 5)]
    torch.testing.assert_close(
        find(model, task, "masking", seed=4, seeds=2, **options).scores, torch.stack(parts).mean(0)
    )


@pytest.mark.parametrize("ablation", ["resample", "mean", "zero"])
def test_every_ablation_has_its_circuit_and_only_the_gates_train(ablation: str) -> None:
    model, task = tiny("gpt2").train(), task_of_ids()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    circuit = find(model, task, "masking", ablation=ablation, steps=10)
    assert len(circuit.settings["sweep"]) == 5
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_bf16_finds_the_miniatures_circuit_too() -> None:
    model, tokenizer, task = the_miniature()
    half = copy.deepcopy(model).to(torch.bfloat16)
    circuit = find(half, task, "masking", tokenizer=tokenizer, **QUICK)
    assert torch.equal(circuit.mask, found().mask)
    assert evaluate_circuit(half, task, circuit.mask, tokenizer=tokenizer).normalised > 0.9


def test_batches_of_rows_and_the_global_random_state_change_nothing() -> None:
    model, task = tiny("qwen2"), task_of_ids(4)
    torch.manual_seed(0)
    options = {"steps": 20, "lambdas": [0.01, 0.05, 0.1], "noise": 0.0, "prompts": 4}
    before = torch.get_rng_state()
    one = find(model, task, "masking", batch_size=4, **options)
    assert torch.equal(torch.get_rng_state(), before)
    whole = find(model, Task("more", task.pairs * 3), "masking", batch_size=12, **options)
    assert one.settings["objective"] == pytest.approx(whole.settings["objective"], abs=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"convention": "both"},
        {"convention": "interchange", "ablation": "zero"},
        {"steps": 0},
        {"seeds": 0},
        {"learning_rate": 0.0},
        {"temperature": (0.1, 1.0)},
        {"temperature": (1.0, 0.0)},
        {"noise": -1.0},
        {"prompts": 0},
        {"lambdas": [-0.1]},
        {"lambdas": []},
        {"unknown": 1},
    ],
)
def test_bad_options_are_named(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        find(tiny("qwen2"), task_of_ids(), "masking", **options)
