"""A stage that was killed goes on from the trainer's last checkpoint, to the bits of one that was not."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rlforget.errors import ConfigError, OutputError
from rlforget.training import EvaluationConfig, LoraConfig, SequenceConfig, SequenceResult, StageConfig, run_sequence
from rlforget.training.checkpoints import Checkpoints
from tests.training.toy import Quiet, bits, same_bits, write_domain

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> SequenceConfig:
    """RL with a reference model; SFT that tries whether to stop, on a decaying rate; an adapter."""
    domain = write_domain(tmp_path_factory.mktemp("domains") / "one.jsonl", "one")
    stages = [
        StageConfig(name="rl", domain=domain, steps=6, prompts=4, beta=0.1),
        StageConfig(
            name="sft",
            domain=domain,
            method="sft",
            steps=6,
            prompts=4,
            schedule="cosine",
            stop_at_reward=1.0,
            stop_window=2,
            evaluate_every=2,
        ),
        StageConfig(name="adapter", domain=domain, steps=6, prompts=4, lora=LoraConfig(rank=2), learning_rate=1e-2),
    ]
    evaluation = EvaluationConfig(count=8)
    return SequenceConfig(model=str(checkpoint), stages=stages, evaluation=evaluation, device="cpu", save_every=2)


@pytest.fixture(scope="module")
def unbroken(config: SequenceConfig, tmp_path_factory: pytest.TempPathFactory) -> SequenceResult:
    """The same without a checkpoint."""
    plain = config.model_copy(update={"save_every": None})
    return run_sequence(plain, tmp_path_factory.mktemp("unbroken") / "run", progress=Quiet())


def events(run: Path, event: str) -> list[dict[str, Any]]:
    lines = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    return [line for line in lines if line["event"] == event]


def assert_same(found: SequenceResult, expected: SequenceResult) -> None:
    assert same_bits(bits(found.model), bits(expected.model))
    for ours, theirs in zip(found.stages, expected.stages, strict=True):
        assert ours.scores == theirs.scores
        if ours.result is not None and theirs.result is not None:
            assert replace(ours.result, seconds=0) == replace(theirs.result, seconds=0)


@pytest.mark.parametrize(("title", "stage"), [("rl (grpo)", "rl"), ("sft (sft)", "sft"), ("adapter (grpo)", "adapter")])
def test_every_kind_of_stage_goes_on(
    title: str, stage: str, config: SequenceConfig, unbroken: SequenceResult, tmp_path: Path
) -> None:
    def interrupt(now: str, done: int) -> None:
        if (now, done) == (title, 5):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_sequence(config, tmp_path / "run", progress=Quiet(interrupt))
    resumed = run_sequence(config, tmp_path / "run", progress=Quiet())
    assert [(line["stage"], line["step"]) for line in events(tmp_path / "run", "resume")] == [(stage, 4)]
    assert [line["step"] for line in events(tmp_path / "run", "step") if line["stage"] == stage] == [
        1,
        2,
        3,
        4,
        5,
        5,
        6,
    ]
    assert_same(resumed, unbroken)
    assert not (tmp_path / "run" / "training").exists()


def test_a_process_killed_while_it_saves_goes_on_from_the_checkpoint_before(
    config: SequenceConfig, unbroken: SequenceResult, tmp_path: Path
) -> None:
    script = """
import os, signal, sys
from rlforget.training import SequenceConfig, run_sequence
from rlforget.training.checkpoints import Checkpoints
from tests.training.toy import Quiet

complete = Checkpoints.complete

def kill(self, step, course, seconds):
    if step == 4:
        os.truncate(self.path / "checkpoint-4" / "model.safetensors", 1000)  # what was not on disk yet
        os.kill(os.getpid(), signal.SIGKILL)
    complete(self, step, course, seconds)

Checkpoints.complete = kill
run_sequence(SequenceConfig.model_validate_json(sys.argv[1]), sys.argv[2], progress=Quiet())
"""
    run = tmp_path / "run"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "-c", script, config.model_dump_json(), str(run)], env=environment)
    assert done.returncode == -signal.SIGKILL
    assert {path.name for path in (run / "training" / "01-rl").glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4"}
    resumed = run_sequence(config, run, progress=Quiet())
    assert [line["step"] for line in events(run, "resume")] == [2]
    assert_same(resumed, unbroken)


def test_checkpoints_of_another_configuration_are_not_gone_on_from(config: SequenceConfig, tmp_path: Path) -> None:
    def interrupt(now: str, done: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    first = config.model_copy(update={"stages": config.stages[:1]})
    with pytest.raises(KeyboardInterrupt):
        run_sequence(first, tmp_path / "run", progress=Quiet(interrupt))
    slower = first.stages[0].model_copy(update={"learning_rate": 5e-4})
    changed = first.model_copy(update={"stages": [slower]})
    shutil.copytree(tmp_path / "run", tmp_path / "again")
    result = run_sequence(changed, tmp_path / "again", progress=Quiet())
    assert events(tmp_path / "again", "resume") == []
    assert same_bits(bits(result.model), bits(run_sequence(changed, tmp_path / "fresh", progress=Quiet()).model))


def test_a_stage_that_had_stopped_is_not_trained_on(config: SequenceConfig, tmp_path: Path) -> None:
    easy = config.stages[1].model_copy(update={"stop_at_reward": 1e-9, "name": "easy", "evaluate_every": 3})
    stopping = config.model_copy(update={"stages": [easy], "save_every": 1})
    unbroken = run_sequence(stopping.model_copy(update={"save_every": None}), tmp_path / "unbroken", progress=Quiet())
    assert unbroken.stages[1].result is not None
    assert unbroken.stages[1].result.steps == 3

    def interrupt(now: str, done: int) -> None:
        if now == "easy: evaluation":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_sequence(stopping, tmp_path / "run", progress=Quiet(interrupt))
    assert_same(run_sequence(stopping, tmp_path / "run", progress=Quiet()), unbroken)
    assert [line["step"] for line in events(tmp_path / "run", "resume")] == [2]


def test_the_folder_of_checkpoints_is_held_to_be_ours(tmp_path: Path) -> None:
    plan = {"config": {"steps": 3}, "processes": 2}
    Checkpoints(tmp_path / "a", 1, plan)
    with pytest.raises(ConfigError, match="2 processes, as the stage was begun with"):
        Checkpoints(tmp_path / "a", 1, plan | {"processes": 1})
    (tmp_path / "a" / "checkpoint-1").mkdir()
    Checkpoints(tmp_path / "a", 1, plan | {"config": {"steps": 4}})
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["plan.json"]
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.tex").write_text("precious")
    with pytest.raises(OutputError, match="other files"):
        Checkpoints(tmp_path / "b", 1, plan)
    assert (tmp_path / "b" / "thesis.tex").read_text() == "precious"
