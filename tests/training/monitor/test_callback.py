"""The monitor in real trainers: transformers' `Trainer`, TRL's SFT and GRPO."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import rlforget as rf
from rlforget.domains.miniature.pretrain import build_model
from rlforget.errors import ConfigError, ForgettingWarning
from rlforget.training import LoraConfig, StageConfig, train_stage
from rlforget.training.quiet import quiet
from tests.training.monitor.loops import TOKENS, completions
from tests.training.toy import Sevens, bits, same_bits

STEPS = {"steps": 4, "prompts": 4, "learning_rate": 1e-3}


class Reporter:
    """Stands where W&B's callback stands."""

    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []

    def callback(self) -> Any:
        from transformers import TrainerCallback

        seen = self.seen

        class Reporting(TrainerCallback):  # type: ignore[misc]
            def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
                seen.append({"step": state.global_step, **logs})

        return Reporting()


def trainer_of(model: Any, folder: Path, **arguments: Any) -> Any:
    from transformers import Trainer, TrainingArguments

    rows = [{"input_ids": row, "labels": row} for row in TOKENS]
    given = {"max_steps": 5, "use_cpu": True, "report_to": "none", "save_strategy": "no", "disable_tqdm": True}
    with quiet():
        args = TrainingArguments(str(folder), **given | arguments)
        return Trainer(model, args, train_dataset=rows, callbacks=[])


def test_figures_reach_the_reporters_and_the_history_of_the_logs(model: Any, tmp_path: Path) -> None:
    reporter = Reporter()
    trainer = trainer_of(model, tmp_path, logging_steps=100)
    trainer.add_callback(reporter.callback())
    start = copy.deepcopy(model)
    protect = {"given": completions()}
    monitor = rf.ForgettingMonitor(every=2, protect=protect, tokenizer=1, dtype=None, log=tmp_path / "log.jsonl")
    assert monitor.attach(trainer) is monitor
    with quiet():
        trainer.train()
    reported = {row["step"]: row for row in reporter.seen if "forgetting/update_sparsity" in row}
    assert list(reported) == [2, 4, 5]
    last = reported[5]
    assert last["forgetting/damage/given"] > 0
    assert last["forgetting/kl/given"] > 0
    total = rf.diff(start, model).stats().total
    assert last["forgetting/update_sparsity"] == total.sparsity
    history = {row["step"]: row for row in trainer.state.log_history if "forgetting/update_norm" in row}
    assert [history[step]["forgetting/update_norm"] for step in reported] == [
        row["forgetting/update_norm"] for row in reported.values()
    ]
    assert "forgetting/step_sparsity" in reported[4]
    written = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(line["event"], line["step"]) for line in written] == [("forgetting", step) for step in (0, 2, 4, 5)]


@pytest.mark.parametrize("method", ["sft", "grpo"])
def test_a_stage_is_the_same_with_a_monitor_and_without(method: Any, tokenizer: Any) -> None:
    stage = StageConfig(domain="math", method=method, **STEPS)
    alone, watched = build_model(0), build_model(0)
    train_stage(alone, tokenizer, stage, seed=3, domain=Sevens(), progress=False)
    monitor = rf.ForgettingMonitor(every=2, protect=["math"], fisher_samples=8, held_samples=4, evaluate=["qa"])
    with quiet():
        train_stage(watched, tokenizer, stage, seed=3, domain=Sevens(), progress=False, callbacks=[monitor])
    assert same_bits(bits(alone), bits(watched))
    assert monitor.tracker is not None
    assert [figures.step for figures in monitor.tracker.measured] == [0, 2, 4]
    assert monitor.tracker.measured[-1].rewards.keys() == {"qa"}


def test_a_warning_ends_the_training(model: Any, tmp_path: Path) -> None:
    trainer = trainer_of(model, tmp_path, learning_rate=1e-2, max_steps=50)
    protect = {"given": completions()}
    rf.ForgettingMonitor(every=2, protect=protect, tokenizer=1, warn_at=1e-2, stop=True).attach(trainer)
    with quiet(), pytest.warns(ForgettingWarning, match="step 2"):
        trainer.train()
    assert trainer.state.global_step == 2


def test_the_end_of_a_training_is_committed(model: Any, tmp_path: Path) -> None:
    history = rf.History.init(tmp_path / "history", copy.deepcopy(model), copy=True)
    trainer = trainer_of(model, tmp_path, max_steps=3)
    rf.ForgettingMonitor(every=2, history=tmp_path / "history", domain="toy").attach(trainer)
    with quiet():
        trainer.train()
    (stage,) = history.log()
    assert (stage.domain, stage.message) == ("toy", "step 3")
    weights = history.weights(stage)
    assert all(torch.equal(weights.tensor(n).view(torch.uint8), v) for n, v in bits(model).items())


def test_an_adapter_is_watched_alone(tokenizer: Any) -> None:
    model = build_model(0)
    stage = StageConfig(domain="math", method="sft", lora=LoraConfig(rank=2), **STEPS)
    monitor = rf.ForgettingMonitor(every=2, dtype=None)
    with quiet():
        train_stage(model, tokenizer, stage, seed=3, domain=Sevens(), progress=False, callbacks=[monitor])
    assert monitor.tracker is not None
    last = monitor.tracker.measured[-1]
    assert last.frozen == sum(p.numel() for p in model.parameters())
    assert 0 < last.change.numel < last.frozen
    assert last.change.changed > 0


def test_what_cannot_be_is_said_when_the_monitor_is_made() -> None:
    with pytest.raises(ConfigError, match="every: expected at least 1"):
        rf.ForgettingMonitor(every=0)
    with pytest.raises(TypeError, match="evry"):
        rf.ForgettingMonitor(evry=5)
