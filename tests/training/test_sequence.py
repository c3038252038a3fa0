from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from rlforget.delta import Delta, apply
from rlforget.errors import (
    ConfigError,
    DomainFileError,
    NotACheckpointError,
    OutputError,
    RewardError,
    RlforgetError,
    UnknownNameError,
)
from rlforget.training import (
    EvaluationConfig,
    LoraConfig,
    SequenceConfig,
    SequenceResult,
    StageConfig,
    replay,
    run_sequence,
)
from rlforget.training.loading import load_model
from rlforget.training.run_folder import RunFolder
from tests.training.toy import Quiet, bits, same_bits, write_domain

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def domains(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("domains")
    return {name: write_domain(folder / f"{name}.jsonl", name) for name in ("one", "three")}


@pytest.fixture(scope="module")
def config(domains: dict[str, str], checkpoint: Path) -> SequenceConfig:
    """Three stages: RL, SFT, and an adapter on the first domain again."""
    stages = [
        StageConfig(domain=domains["one"], steps=4, prompts=4),
        StageConfig(domain=domains["three"], method="sft", steps=6, prompts=16),
        StageConfig(domain=domains["one"], steps=3, prompts=4, lora=LoraConfig(rank=2), learning_rate=1e-2),
    ]
    return SequenceConfig(model=str(checkpoint), stages=stages, evaluation=EvaluationConfig(count=16), device="cpu")


@pytest.fixture(scope="module")
def unbroken(config: SequenceConfig, tmp_path_factory: pytest.TempPathFactory) -> SequenceResult:
    return run_sequence(config, tmp_path_factory.mktemp("unbroken") / "run", progress=Quiet())


def stages_in(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "stages").iterdir())


def scores_of(result: SequenceResult) -> dict[str, Any]:
    return {stage.name: stage.scores for stage in result.stages}


def test_every_stage_is_a_delta_and_every_domain_is_evaluated(unbroken: SequenceResult, config: SequenceConfig) -> None:
    assert stages_in(unbroken.output) == ["00-base", "01-one", "02-three", "03-one-2"]
    assert [stage.parent for stage in unbroken.stages] == [None, "base", "one", "three"]
    assert all(set(stage.scores) == {"one", "three"} for stage in unbroken.stages)
    assert all(score.count == 16 for stage in unbroken.stages for score in stage.scores.values())
    assert [stage.config for stage in unbroken.stages[1:]] == config.stages
    assert [stage.result.steps for stage in unbroken.stages[1:] if stage.result] == [4, 6, 3]
    assert unbroken.table().splitlines()[0].split() == ["domain", "base", "one", "three", "one-2"]

    model, _ = load_model(config)
    replay(model, unbroken.output)
    assert same_bits(bits(model), bits(unbroken.model))
    assert all(stage.folder.delta().changed > 0 for stage in unbroken.stages[1:])


def test_the_log_tells_the_run(unbroken: SequenceResult) -> None:
    events = [json.loads(line) for line in (unbroken.output / "log.jsonl").read_text().splitlines()]
    assert [e["event"] for e in events if e["event"] not in ("step", "score")] == [
        "run", *(["stage", "finished"] * 3), "end"
    ]  # fmt: skip
    assert [e["step"] for e in events if e["event"] == "step" and e["stage"] == "three"] == [1, 2, 3, 4, 5, 6]
    assert sum(e["event"] == "score" for e in events) == 4 * 2
    assert [e["time"] for e in events] == sorted(e["time"] for e in events)


def test_a_finished_run_is_only_read(unbroken: SequenceResult, config: SequenceConfig, tmp_path: Path) -> None:
    run = shutil.copytree(unbroken.output, tmp_path / "run")  # its log is told that it was looked at

    def never(title: str, step: int) -> None:
        raise AssertionError(title)

    again = run_sequence(config, run, progress=Quiet(never))
    assert same_bits(bits(again.model), bits(unbroken.model))
    assert scores_of(again) == scores_of(unbroken)


@pytest.mark.parametrize(
    ("title", "step", "left"),
    [
        ("base: evaluation", 1, []),
        ("three: evaluation", 2, ["00-base", "01-one"]),
        ("one-2 (grpo)", 1, ["00-base", "01-one", "02-three"]),
    ],
)
def test_an_interrupted_run_resumes_with_the_same_bits(
    title: str, step: int, left: list[str], config: SequenceConfig, unbroken: SequenceResult, tmp_path: Path
) -> None:
    def interrupt(now: str, done: int) -> None:
        if (now, done) == (title, step):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_sequence(config, tmp_path / "run", progress=Quiet(interrupt))
    assert stages_in(tmp_path / "run") == left
    resumed = run_sequence(config, tmp_path / "run", progress=Quiet())
    assert same_bits(bits(resumed.model), bits(unbroken.model))
    assert scores_of(resumed) == scores_of(unbroken)


def test_a_killed_process_resumes_with_the_same_bits(
    config: SequenceConfig, unbroken: SequenceResult, tmp_path: Path
) -> None:
    script = """
import os, signal, sys
from rlforget.training import SequenceConfig, run_sequence
from tests.training.toy import Quiet

def kill(title, step):
    if (title, step) == ("three (sft)", 3):
        os.kill(os.getpid(), signal.SIGKILL)

run_sequence(SequenceConfig.model_validate_json(sys.argv[1]), sys.argv[2], progress=Quiet(kill))
"""
    run = tmp_path / "run"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "-c", script, config.model_dump_json(), str(run)], env=environment)
    assert done.returncode == -signal.SIGKILL
    assert stages_in(run) == ["00-base", "01-one"]
    with (run / "log.jsonl").open("a") as log:
        log.write('{"time": 1, "eve')  # a line that the kill tore
    (run / "stages" / ".rlforget-0123.partial").mkdir()  # a stage that was being written

    resumed = run_sequence(config, run, progress=Quiet())
    assert same_bits(bits(resumed.model), bits(unbroken.model))
    assert scores_of(resumed) == scores_of(unbroken)
    assert stages_in(run) == stages_in(unbroken.output)
    assert all(json.loads(line) for line in (run / "log.jsonl").read_text().splitlines())
    for mine, theirs in zip(resumed.stages[1:], unbroken.stages[1:], strict=True):
        one, other = Delta.load(mine.folder.delta_path), Delta.load(theirs.folder.delta_path)
        assert one.changed == other.changed


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"seed": 1}, "key seed"),
        ({"evaluation": EvaluationConfig(count=17)}, "key evaluation.count"),
        ({"stages": [{"steps": 5}]}, r"key stages\[0\].steps"),
        ({"stages": [{}, {"learning_rate": 2e-3}]}, r"key stages\[1\].learning_rate"),
        ({"stages": [{}, {}, {"lora": None}]}, r"key stages\[2\].lora"),
        ({"stages": [{"name": "first"}]}, r"key stages\[0\].name"),
    ],
    ids=str,
)
def test_the_configuration_of_a_finished_stage_may_not_change(
    change: dict[str, Any], key: str, config: SequenceConfig, unbroken: SequenceResult
) -> None:
    if "stages" in change:
        edits = [*change["stages"], {}, {}][: len(config.stages)]
        stages = [stage.model_copy(update=edit) for stage, edit in zip(config.stages, edits, strict=True)]
        change = {"stages": stages}
    with pytest.raises(ConfigError, match=key):
        run_sequence(config.model_copy(update=change), unbroken.output, progress=Quiet())
    assert len(stages_in(unbroken.output)) == 4


def test_fewer_stages_than_are_finished_is_a_fault(config: SequenceConfig, unbroken: SequenceResult) -> None:
    shorter = config.model_copy(
        update={"stages": config.stages[:2], "evaluation": EvaluationConfig(count=16, domains=[
            config.stages[0].domain, config.stages[1].domain])}
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"3 stages at least"):
        run_sequence(shorter, unbroken.output, progress=Quiet())


def test_other_weights_at_the_same_place_are_noticed(
    config: SequenceConfig, unbroken: SequenceResult, checkpoint: Path, tmp_path: Path
) -> None:
    model, tokenizer = load_model(config)
    with torch.no_grad():
        model.model.norm.weight[0] += 1
    model.save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    with pytest.raises(ConfigError, match="key model: expected weights"):
        run_sequence(config.model_copy(update={"model": str(tmp_path / "other")}), unbroken.output, progress=Quiet())


def test_stages_branch_from_a_parent(config: SequenceConfig, domains: dict[str, str], tmp_path: Path) -> None:
    rl = StageConfig(name="rl", domain=domains["one"], steps=2, prompts=2)
    sft = StageConfig(name="sft", parent="base", domain=domains["one"], method="sft", steps=2)
    more = StageConfig(name="more", parent="rl", domain=domains["three"], method="sft", steps=2)
    branched = run_sequence(config.model_copy(update={"stages": [rl, sft, more]}), tmp_path / "a", progress=Quiet())
    assert [stage.parent for stage in branched.stages] == [None, "base", "base", "rl"]

    alone = load_model(config)[0]
    for stage in (branched.stages[1], branched.stages[3]):
        apply(alone, stage.folder.delta())
    assert same_bits(bits(alone), bits(branched.model))
    again = load_model(config)[0]
    replay(again, tmp_path / "a")
    assert same_bits(bits(again), bits(branched.model))


def test_a_parent_must_come_earlier(config: SequenceConfig, domains: dict[str, str], tmp_path: Path) -> None:
    stages = [StageConfig(domain=domains["one"], parent="three"), StageConfig(domain=domains["three"])]
    with pytest.raises(ConfigError, match=r"stages\[0\].parent: expected an earlier stage, one of base; found 'three'"):
        run_sequence(config.model_copy(update={"stages": stages}), tmp_path / "run", progress=Quiet())
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_from_another(
    config: SequenceConfig, unbroken: SequenceResult, domains: dict[str, str], tmp_path: Path
) -> None:
    refresh = StageConfig(name="refresh", domain=domains["three"], method="sft", steps=2)
    onward = config.model_copy(update={"stages": [refresh], "continue_from": str(unbroken.output)})
    result = run_sequence(onward, tmp_path / "refresh", progress=Quiet())
    assert result.stages[0].scores["three"] == unbroken.stages[-1].scores["three"]

    further = config.model_copy(update={"stages": [refresh], "continue_from": str(tmp_path / "refresh")})
    run = run_sequence(further, tmp_path / "further", progress=Quiet())
    assert run.stages[0].scores == result.stages[-1].scores
    with pytest.raises(ConfigError, match="the folder of a run; found none"):
        run_sequence(config.model_copy(update={"continue_from": str(tmp_path)}), tmp_path / "x", progress=Quiet())


def test_an_output_folder_belongs_to_one_run_at_a_time(config: SequenceConfig, unbroken: SequenceResult) -> None:
    with (
        RunFolder(unbroken.output).opened(resume=True),
        pytest.raises(OutputError, match="another process"),
    ):
        run_sequence(config, unbroken.output, progress=Quiet())
    with pytest.raises(OutputError, match="Resume it"):
        run_sequence(config, unbroken.output, resume=False, progress=Quiet())


def test_a_folder_of_other_files_is_refused(config: SequenceConfig, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(OutputError, match="other files"):
        run_sequence(config, tmp_path, progress=Quiet())
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_output_that_cannot_be_made_is_refused(config: SequenceConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="can be written"):
        run_sequence(config, tmp_path / "file" / "run", progress=Quiet())


@pytest.mark.parametrize("content", ["", "[]", "{"])
def test_a_broken_record_is_named(content: str, config: SequenceConfig, tmp_path: Path) -> None:
    (tmp_path / "run" / "stages" / "00-base").mkdir(parents=True)
    (tmp_path / "run" / "stages" / "00-base" / "stage.json").write_text(content)
    with pytest.raises(ConfigError, match=r"stage\.json: expected the record of a finished stage"):
        run_sequence(config, tmp_path / "run", progress=Quiet())


def test_a_missing_stage_is_named(unbroken: SequenceResult, tmp_path: Path) -> None:
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "01-one").symlink_to(unbroken.stages[1].folder.path)
    with pytest.raises(ConfigError, match="expected stage 0; found it missing"):
        RunFolder(tmp_path).finished()


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"model": "/no/such/model"}, NotACheckpointError, "no such folder"),
        ({"stages": [StageConfig(domain="cod")]}, UnknownNameError, "found 'cod'"),
        ({"stages": [StageConfig(domain="none.jsonl")]}, DomainFileError, "none.jsonl"),
    ],
)
def test_bad_names_are_faults_before_anything_is_trained(
    change: dict[str, Any], kind: type[RlforgetError], message: str, config: SequenceConfig, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=message):
        run_sequence(config.model_copy(update=change), tmp_path / "run", progress=Quiet())


def test_a_bad_reward_ends_the_run_at_the_last_finished_stage(
    config: SequenceConfig, domains: dict[str, str], tmp_path: Path
) -> None:
    rows = Path(domains["one"]).read_text().replace("tests.training.toy:sevens", "math:cos")
    (tmp_path / "bad.jsonl").write_text(rows)
    stages = [config.stages[0], StageConfig(domain=str(tmp_path / "bad.jsonl"), steps=2)]
    update = {"stages": stages, "evaluation": EvaluationConfig(domains=[domains["one"]], count=16)}
    with pytest.raises(RewardError):
        run_sequence(config.model_copy(update=update), tmp_path / "run", progress=Quiet())
    assert stages_in(tmp_path / "run") == ["00-base", "01-one"]


def test_a_full_disk_leaves_no_half_written_stage(unbroken: SequenceResult, tmp_path: Path) -> None:
    class Full:
        def save(self, path: Path, *, self_contained: bool) -> None:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    run = RunFolder(tmp_path)
    with run.opened(resume=True):
        run.write(0, "base", {}, None)
        with pytest.raises(OutputError, match="No space left"):
            run.write(1, "one", {}, cast(Delta, Full()))
        assert stages_in(tmp_path) == ["00-base"]
        run.write(1, "one", {}, unbroken.stages[1].folder.delta())
    assert [stage.name for stage in run.finished()] == ["base", "one"]
    assert run.finished()[1].delta().changed == unbroken.stages[1].folder.delta().changed
