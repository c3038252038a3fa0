"""Two processes train one model together, started as a user starts them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rlforget.training import SequenceConfig, replay
from rlforget.training.loading import load_model
from tests.training.toy import write_domain

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys, torch
from rlforget.training import SequenceConfig, run_sequence
from tests.training.toy import Quiet

result = run_sequence(SequenceConfig.model_validate_json(sys.argv[1]), sys.argv[2], progress=Quiet())
rank = torch.distributed.get_rank()
torch.save(result.model.state_dict(), f"{sys.argv[2]}.{rank}.pt")
torch.distributed.destroy_process_group()
"""


def together(config: SequenceConfig, out: Path, program: Path) -> subprocess.CompletedProcess[str]:
    program.write_text(PROGRAM)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(program)]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [*command, config.model_dump_json(), str(out)],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=250,
    )


@pytest.fixture
def config(tmp_path: Path, checkpoint: Path) -> SequenceConfig:
    domain = write_domain(tmp_path / "one.jsonl", "one")
    stages = [
        {"name": "rl", "domain": domain, "steps": 2, "prompts": 4, "beta": 0.1},
        {"name": "sft", "domain": domain, "method": "sft", "steps": 2, "prompts": 4},
    ]
    held = {"model": str(checkpoint), "stages": stages, "evaluation": {"count": 8}, "device": "cpu", "save_every": 1}
    return SequenceConfig.model_validate(held)


def test_two_processes_share_a_run(config: SequenceConfig, tmp_path: Path) -> None:
    done = together(config, tmp_path / "run", tmp_path / "program.py")
    assert done.returncode == 0, done.stderr[-3000:]
    one, other = (torch.load(tmp_path / f"run.{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(one[name].view(torch.int32), other[name].view(torch.int32)) for name in one)
    model, _ = load_model(config)
    replay(model, tmp_path / "run")
    assert all(torch.equal(one[n].view(torch.int32), v.view(torch.int32)) for n, v in model.state_dict().items())
    events = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [(e["stage"], e["step"]) for e in events if e["event"] == "step"] == [
        ("rl", 1), ("rl", 2), ("sft", 1), ("sft", 2)
    ]  # fmt: skip
    assert {path.name for path in (tmp_path / "run").iterdir()} == {".lock", "log.jsonl", "stages"}


def test_what_stops_the_first_process_stops_the_other(config: SequenceConfig, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("precious")
    done = together(config, tmp_path / "run", tmp_path / "program.py")
    assert done.returncode != 0
    assert "other files" in done.stderr
    assert "WorldError: the first process: expected it to go on" in done.stderr
