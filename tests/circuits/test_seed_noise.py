"""The null of two models against one base: seed noise is called a difference one time in twenty."""

from __future__ import annotations

import copy
from collections import defaultdict

import numpy as np
import pytest
import torch

from rlforget.circuits import exchange, find
from rlforget.circuits.effects import KEEPS
from tests.circuits.made_circuits import below, effects, replicates
from tests.circuits.tiny_models import task_of_ids, tiny

DRAWS = 800  # the standard error of a share of 5% is then 0.8%


@pytest.mark.parametrize(
    "options",
    [
        {"shape": (4, 4), "size": 5},
        {"shape": (8, 8), "size": 16},
        {"shape": (4, 4), "size": 5, "scale": 0.3},
        {"shape": (4, 4), "size": 5, "prompt_noise": 3.0},
    ],
    ids=["16 heads", "64 heads", "other scales", "noisy prompts"],
)
def test_seed_noise_is_called_a_difference_one_time_in_twenty(options: dict[str, object]) -> None:
    random = np.random.default_rng(11)
    found = defaultdict(list)
    for _ in range(DRAWS):
        base, one, two = map(effects, replicates(random, 3, **options))  # type: ignore[arg-type]
        for name, p in exchange.heads(base, one, two, 80, 0).items():
            found[name].append(p.value)
    for name in KEEPS:
        assert 0.03 <= below(found[name]) <= 0.07, name
        assert 0.40 <= below(found[name], 0.5) <= 0.60, name
        assert 0.02 <= 1 - below(found[name], 0.95) <= 0.08, name


def test_real_models_that_differ_by_noise_in_their_weights() -> None:
    center = tiny("qwen2", layers=4)
    task, generator = task_of_ids(24), torch.Generator().manual_seed(0)
    found = []
    for _ in range(100):
        model = copy.deepcopy(center)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * parameter.std() * torch.randn(parameter.shape, generator=generator))
        found.append(effects(find(model, task, "attribution", size=5, batch_size=24)))
    random = np.random.default_rng(0)
    values = defaultdict(list)
    for _ in range(600):  # threes of the hundred, which share models
        base, one, two = (found[index] for index in random.choice(len(found), 3, replace=False))
        for name, p in exchange.heads(base, one, two, 60, 0).items():
            values[name].append(p.value)
    for name in ("retention", "iou", "rank_correlation"):
        assert 0.03 <= below(values[name]) <= 0.07, name
