"""Retention along a run, beside the reward."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest
import torch

from rlforget.circuits.trajectory import follow, trajectory_of_circuits
from rlforget.errors import ConfigError
from tests.circuits.made_circuits import replicates
from tests.circuits.tiny_models import task_of_ids, tiny

FEW = {"permutations": 30, "bootstrap": 30, "splits": 5}


def moved(model: Any, size: float) -> Any:
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return other


def test_a_run_that_moves_away_keeps_less() -> None:
    base = tiny("qwen2")
    alive: list[str] = []

    def checkpoints() -> Any:
        for index, size in enumerate((0.0, 0.1, 1.0)):
            alive.append(f"step {index}")
            yield alive[-1], moved(base, size)

    rewards = iter((0.1, 0.2, 0.4, 0.8))
    found = follow(base, checkpoints(), task_of_ids(8), reward=lambda model: next(rewards), size=3, **FEW)
    assert [one.name for one in found.checkpoints] == ["base", "step 0", "step 1", "step 2"]
    correlations = [one.kept["correlation"].value for one in found.checkpoints]
    assert correlations[:2] == pytest.approx([1.0, 1.0])
    assert correlations[1] > correlations[2] > correlations[3]
    assert [reward for reward, _ in found.curve()] == [0.1, 0.2, 0.4, 0.8]
    assert found.curve("correlation")[2][1] == correlations[2]
    assert max(map(len, found.table().splitlines())) <= 100
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["checkpoints"][3]["reward"] == 0.8


def test_no_reward_is_no_curve() -> None:
    base, one, two = replicates(np.random.default_rng(0), 3)
    found = trajectory_of_circuits(base, {"one": one, "two": two}, **FEW)
    assert found.curve() == []
    assert found.comparison.differences == []
    assert "–" in found.table()


def test_checkpoints_need_names_of_their_own() -> None:
    base = tiny("gpt2")
    with pytest.raises(ConfigError, match="called 'a'"):
        follow(base, [("a", base), ("a", base)], task_of_ids(4), size=2, **FEW)
    with pytest.raises(ConfigError, match="at least one checkpoint"):
        follow(base, [], task_of_ids(4), size=2, **FEW)
