"""Both trainers learn for real: on the shipped miniature, from every seed."""

from __future__ import annotations

from typing import Any

import pytest

from rlforget.domains import evaluate, get, miniature
from rlforget.training import StageConfig, train_stage
from rlforget.training.quiet import quiet
from tests.training.toy import Quiet


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
@pytest.mark.parametrize("method", ["grpo", "sft"])
def test_a_short_stage_raises_the_sampled_reward(method: Any, seed: int) -> None:
    config = StageConfig(domain="math", method=method, steps=8, prompts=16 if method == "grpo" else 128)
    with quiet():
        model, tokenizer = miniature.load()
    before = evaluate(model, tokenizer, get("math"), count=256)
    train_stage(model, tokenizer, config, seed=seed, progress=Quiet())
    after = evaluate(model, tokenizer, get("math"), count=256)
    assert after.mean - before.mean > 5 * (before.stderr**2 + after.stderr**2) ** 0.5
