"""`train`, `sequence`, `refresh` on small checkpoints: a few steps each."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from textwrap import dedent

import pytest

import rlforget as rf
from tests.cli.conftest import Checkpoints, differing, run, unchanged

TWO_STAGES = """
    model: {model}
    stages:
      - {{domain: math, method: sft, steps: 2, prompts: 4, name: sums}}
      - {{domain: qa, method: grpo, steps: 2, prompts: 2, samples: 2}}
    evaluation: {{domains: [math, qa], count: 4}}
"""


@pytest.fixture
def config(checkpoints: Checkpoints, tmp_path: Path) -> Path:
    return write(tmp_path / "sequence.yaml", TWO_STAGES, checkpoints.base)


def write(path: Path, text: str, model: Path) -> Path:
    path.write_text(dedent(text).format(model=model), encoding="utf-8")
    return path


def test_sequence_runs_its_stages_and_goes_on_where_it_stopped(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = run("sequence", config, "-o", out, "--json").json
    assert [stage["name"] for stage in first["stages"]] == ["base", "sums", "qa"]
    assert [stage["steps"] for stage in first["stages"]] == [0, 2, 2]
    assert all(set(stage["rewards"]) == {"math", "qa"} for stage in first["stages"])
    assert rf.Delta.load(next(Path(first["stages"][1]["folder"]).glob("*.delta.safetensors"))).changed
    again = run("sequence", config, "-o", out)
    assert again.code == 0
    assert again.out.splitlines()[0].split() == ["domain", "base", "sums", "qa"]
    assert again.out.splitlines()[-1] == f"wrote {out}"
    with unchanged(out):
        assert "run" in run("sequence", config, "-o", out, "--no-resume").fault


def test_train_writes_a_checkpoint(config: Path, checkpoints: Checkpoints, tmp_path: Path) -> None:
    out = tmp_path / "tuned"
    shown = run("train", config, "--stage", "sums", "-o", out)
    assert shown.code == 0
    assert shown.out.splitlines()[1].startswith("math")
    assert "2 steps of sft on math" in shown.out
    assert differing(out, checkpoints.base) > 0
    found = run("train", config, "--stage", "sums", "-o", out, "--force", "--json").json
    assert (found["domain"], found["method"], found["steps"], found["out"]) == ("math", "sft", 2, str(out))
    assert set(found["rewards"]) == {"before", "after"}


def test_train_asks_which_stage(config: Path, tmp_path: Path) -> None:
    asked = run("train", config, "-o", tmp_path / "tuned")
    assert asked.code == 2
    assert "sums, qa" in asked.err
    assert "sums, qa" in run("train", config, "--stage", "sum", "-o", tmp_path / "tuned").fault


def test_refresh_writes_a_checkpoint_like_its_model(checkpoints: Checkpoints, tmp_path: Path) -> None:
    out = tmp_path / "fresh"
    options = ("--domain", "math", "--steps", 2, "--method", "sft", "--prompts", 4, "--evaluate", "--samples", 4)
    found = run("refresh", checkpoints.tuned, *options, "-o", out, "--json").json
    assert found["steps"] == 2
    assert set(found["rewards"]["before"]) == {"math"}
    assert differing(out, checkpoints.tuned) > 0
    assert {path.name for path in out.iterdir()} == {path.name for path in checkpoints.tuned.iterdir()}
    shown = run("refresh", checkpoints.tuned, *options[:-3], "-o", out, "--force").out
    assert shown.splitlines() == [shown.splitlines()[0], f"wrote {out}"]


def test_refresh_spares_what_it_is_told_to(checkpoints: Checkpoints, tmp_path: Path) -> None:
    options = ("--domain", "math", "--steps", 1, "--method", "sft", "--prompts", 4, "--samples", 4)
    asked = ("refresh", checkpoints.tuned, *options)
    assert run(*asked, "-o", tmp_path / "plain").code == 0
    for kind in ("project", "fisher"):
        out = tmp_path / kind
        found = run(*asked, "--protect", "writing", "--protection", kind, "--evaluate", "-o", out, "--json").json
        assert set(found["rewards"]["after"]) == {"math", "writing"}
        assert differing(out, tmp_path / "plain") > 0
    assert "poetry" in run(*asked, "--protect", "poetry", "-o", tmp_path / "out").fault


@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_dry_run_shows_the_plan_and_writes_nothing(
    flags: tuple[str, ...], config: Path, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    out = ("-o", tmp_path / "out", "--dry-run", *flags)
    with unchanged(tmp_path):
        shown = [
            run("sequence", config, *out),
            run("train", config, "--stage", "qa", *out),
            run("refresh", checkpoints.tuned, "--domain", "math", *out),
        ]
    assert [one.code for one in shown] == [0, 0, 0]
    if flags:
        assert [stage["domain"] for stage in shown[0].json["stages"]] == ["math", "qa"]
    else:
        assert [line.split()[0] for line in shown[0].out.splitlines()[1:3]] == ["sums", "qa"]


@pytest.mark.parametrize("command", ["train", "sequence"])
@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("stepz: 2", ("line 4", "stepz", "'steps'")),
        ("steps: two", ("line 4", "steps", "a whole number", "'two'")),
        ("method: gpro", ("line 4", "method", "'grpo'")),
        ("steps: [2", ("line", "YAML")),
    ],
)
def test_a_typo_in_the_file_names_key_and_line(
    command: str, broken: str, said: tuple[str, ...], checkpoints: Checkpoints, tmp_path: Path
) -> None:
    text = "\n    model: {model}\n    stages:\n      - {{domain: math, " + broken + "}}\n"
    config = write(tmp_path / "broken.yaml", text, checkpoints.base)
    with unchanged(tmp_path):
        fault = run(command, config, "-o", tmp_path / "out").fault
    assert all(word in fault for word in said), fault


def test_an_interrupt_in_a_stage_leaves_finished_stages_only(checkpoints: Checkpoints, tmp_path: Path) -> None:
    long = TWO_STAGES.replace("steps: 2, prompts: 2", "steps: 100000, prompts: 2")
    config, out = write(tmp_path / "long.yaml", long, checkpoints.base), tmp_path / "run"
    command = [sys.executable, "-m", "rlforget", "sequence", str(config), "-o", str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            _wait_for_step(out / "log.jsonl", "qa", process)
            process.send_signal(signal.SIGINT)
            shown, told = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, shown) == (130, "")
    assert told.splitlines()[-1] == "rlforget: interrupted"
    assert "Traceback" not in told
    assert sorted(path.name for path in (out / "stages").iterdir()) == ["00-base", "01-sums"]


def _wait_for_step(log: Path, stage: str, process: subprocess.Popen[str]) -> None:
    ends = time.monotonic() + 120
    while time.monotonic() < ends and process.poll() is None:
        lines = log.read_text().split("\n")[:-1] if log.exists() else []
        if any(line["event"] == "step" and line["stage"] == stage for line in map(json.loads, lines)):
            return
        time.sleep(0.1)
    pytest.fail("the stage never began")
