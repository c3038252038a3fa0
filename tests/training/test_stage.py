from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from rlforget.delta import diff
from rlforget.domains import Example, evaluate
from rlforget.domains.miniature.pretrain import build_model
from rlforget.errors import ConfigError, NonFiniteError, RewardError
from rlforget.training import JsonLinesLog, LoraConfig, StageConfig, refresh, train_stage
from tests.training.toy import Quiet, Sevens, bits, same_bits


def stage(**values: Any) -> StageConfig:
    return StageConfig(domain="sevens", **values)


def train(model: Any, tokenizer: Any, config: StageConfig, **values: Any) -> Any:
    values = {"seed": 1, "domain": Sevens(), "progress": Quiet(), **values}
    return train_stage(model, tokenizer, config, **values)


def reward(model: Any, tokenizer: Any) -> float:
    return evaluate(model, tokenizer, Sevens(), count=256).mean


def test_grpo_learns(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    before = reward(model, tokenizer)
    with JsonLinesLog(tmp_path / "log.jsonl") as log:
        result = train(model, tokenizer, stage(steps=25), log=log)
    assert reward(model, tokenizer) > before + 0.15
    assert result.steps == len(result.rewards) == len(result.losses) == 25
    assert sum(result.rewards[-5:]) / 5 > sum(result.rewards[:5]) / 5 + 0.1
    events = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [event["reward"] for event in events if event["event"] == "step"] == list(result.rewards)


def test_sft_learns_the_answers_and_their_end(model: Any, tokenizer: Any) -> None:
    result = train(model, tokenizer, stage(method="sft", steps=80, prompts=32, learning_rate=3e-3))
    score = evaluate(model, tokenizer, Sevens(), count=64, greedy=True)
    assert score.mean == 1.0  # `777` and not one token more
    assert result.losses[-1] < 0.5 < result.losses[0]


@pytest.mark.parametrize("method", ["grpo", "sft"])
def test_only_the_weights_change(method: Any, model: Any, tokenizer: Any) -> None:
    model.lm_head.weight.requires_grad_(False)
    parameters = dict(model.named_parameters())
    config, generation, state = model.config.to_dict(), model.generation_config.to_dict(), torch.get_rng_state()
    train(model, tokenizer, stage(method=method, steps=2))
    assert all(value is parameters[name] for name, value in model.named_parameters())
    assert all(value.grad is None for value in model.parameters())
    assert not model.lm_head.weight.requires_grad
    assert not model.training
    assert "forward" not in vars(model)
    assert (config, generation) == (model.config.to_dict(), model.generation_config.to_dict())
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("method", ["grpo", "sft"])
def test_a_seed_decides_every_bit(method: Any, tokenizer: Any) -> None:
    models = [build_model(0) for _ in range(3)]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        torch.rand(seed)  # what was drawn before does not matter
        train(model, tokenizer, stage(method=method, steps=3), seed=seed)
    first, again, other = map(bits, models)
    assert same_bits(first, again)
    assert not same_bits(first, other)


def test_micro_batches_only_save_memory(tokenizer: Any) -> None:
    whole, parts = build_model(0), build_model(0)
    train(whole, tokenizer, stage(method="sft", steps=2))
    train(parts, tokenizer, stage(method="sft", steps=2, micro_batch=4))
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=5e-4)  # Adam's first steps are the signs of the gradient


@pytest.mark.parametrize("method", ["grpo", "sft"])
def test_an_adapter_ends_in_the_weights_of_its_modules(method: Any, model: Any, tokenizer: Any) -> None:
    before = {name: value.detach().clone() for name, value in model.state_dict().items()}
    names = [name for name, _ in model.named_modules()]
    lora = LoraConfig(rank=2, target_modules=["q_proj", "down_proj"])
    train(model, tokenizer, stage(method=method, steps=2, lora=lora))
    assert names == [name for name, _ in model.named_modules()]
    changed = {name for name, tensor in diff(before, model).items() if tensor.changed}
    assert changed == {name for name in before if "q_proj.weight" in name or "down_proj.weight" in name}
    for name in changed:
        assert torch.linalg.matrix_rank(model.state_dict()[name] - before[name], rtol=1e-2) <= 2


def test_a_wrong_adapter_leaves_the_model_alone(model: Any, tokenizer: Any) -> None:
    before = bits(model)
    with pytest.raises(ConfigError, match="target_modules"):
        train(model, tokenizer, stage(lora=LoraConfig(target_modules=["no_such"])))
    assert same_bits(before, bits(model))


def test_an_interrupted_adapter_leaves_no_trace(model: Any, tokenizer: Any) -> None:
    def interrupt(title: str, step: int) -> None:
        raise KeyboardInterrupt

    before, names = bits(model), [name for name, _ in model.named_modules()]
    with pytest.raises(KeyboardInterrupt):
        train(model, tokenizer, stage(lora=LoraConfig()), progress=Quiet(interrupt))
    assert same_bits(before, bits(model))
    assert names == [name for name, _ in model.named_modules()]
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_reference_is_the_stages_own_start(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    """At the first step the policy is the reference, wherever the model was once loaded from."""
    model.config._name_or_path = "no/such-model"
    with JsonLinesLog(tmp_path / "log.jsonl") as log:
        train(model, tokenizer, stage(steps=2, beta=0.1), log=log)
    steps = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert steps[0]["kl"] == pytest.approx(0.0, abs=1e-7)
    assert steps[1]["kl"] > 1e-6
    assert model.config._name_or_path == "no/such-model"


@pytest.mark.parametrize(
    "config",
    [
        stage(steps=60, stop_at_reward=0.06, stop_window=3),
        stage(method="sft", steps=60, prompts=32, stop_at_reward=0.06, evaluate_every=3),
    ],
    ids=["grpo", "sft"],
)
def test_a_stage_stops_at_a_reward(config: StageConfig, model: Any, tokenizer: Any) -> None:
    result = train(model, tokenizer, config)
    assert result.stopped
    assert 3 <= result.steps < 60
    window = config.stop_window if config.method == "grpo" else 1
    assert sum(result.rewards[-window:]) / window >= 0.06
    assert sum(result.rewards[-window - 1 : -1]) / window < 0.06


@pytest.mark.parametrize("value", [float("nan"), 1.5, "0.5", None])
def test_a_reward_that_is_no_number_ends_the_stage(value: Any, model: Any, tokenizer: Any) -> None:
    class Broken(Sevens):
        name = "broken"

        def reward(self, example: Example, completion: str) -> Any:
            return value

    with pytest.raises(RewardError, match=rf"domain 'broken' on prompt 'M.*found {value!r} "):
        train(model, tokenizer, stage(steps=2), domain=Broken())
    assert "forward" not in vars(model)


def test_a_reward_that_raises_ends_the_stage(model: Any, tokenizer: Any) -> None:
    class Raising(Sevens):
        def reward(self, example: Example, completion: str) -> float:
            return 1 / 0

    with pytest.raises(RewardError, match="ZeroDivisionError"):
        train(model, tokenizer, stage(steps=2), domain=Raising())


@pytest.mark.parametrize("method", ["grpo", "sft"])
def test_divergence_is_named(method: Any, model: Any, tokenizer: Any) -> None:
    with pytest.raises(NonFiniteError, match="Lower learning_rate"):
        train(model, tokenizer, stage(method=method, steps=3, learning_rate=1e38, max_grad_norm=0.0))


def test_a_stage_says_nothing_of_its_own(capfd: pytest.CaptureFixture[str], model: Any, tokenizer: Any) -> None:
    train(model, tokenizer, stage(steps=2, beta=0.1), progress=False)
    train(model, tokenizer, stage(method="sft", steps=2), progress=False)
    assert capfd.readouterr() == ("", "")


def test_a_refresh_is_a_short_stage(tokenizer: Any) -> None:
    refreshed, trained = build_model(0), build_model(0)
    result = refresh(refreshed, tokenizer, Sevens(), steps=3, prompts=4, seed=5, progress=False)
    train(trained, tokenizer, stage(steps=3, prompts=4), seed=5)
    assert (result.name, result.steps) == ("sevens", 3)
    assert same_bits(bits(refreshed), bits(trained))


def test_trl_is_imported_when_a_stage_starts() -> None:
    code = "import sys, rlforget.training; print([m for m in ('trl', 'transformers', 'datasets') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
