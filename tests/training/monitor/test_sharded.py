"""Ranks that hold shards of a model measure what one process measures of the whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import rlforget as rf
from tests.training.monitor import domains_program
from tests.training.monitor.ranks_program import main

ROOT = Path(__file__).resolve().parents[3]


def run_ranks(ranks: int, program: str, *arguments: str) -> None:
    """Run a program of this folder by torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    done = subprocess.run(
        [*command, "-m", f"tests.training.monitor.{program}", *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize(
    ("form", "ranks"),
    [
        ("fsdp", 2),
        pytest.param("copies", 4, marks=pytest.mark.slow),
        pytest.param("tensor", 4, marks=pytest.mark.slow),
    ],
)
def test_shards_add_up_to_the_whole(tmp_path: Path, form: str, ranks: int) -> None:
    run_ranks(ranks, "ranks_program", str(tmp_path / "ranks"), form)
    main(str(tmp_path / "alone"), "alone")
    together, alone = (json.loads((tmp_path / name).read_text()) for name in ("ranks", "alone"))
    assert [row["step"] for row in alone] == [0, 2, 4]
    assert 0 < alone[-1]["changed"] < alone[-1]["coordinates"]
    for ours, theirs in zip(together, alone, strict=True):
        norms = {"update_norm", "step_norm"} & ours.keys()  # sums of float64, in another order
        assert {k: v for k, v in ours.items() if k not in norms} == {k: v for k, v in theirs.items() if k not in norms}
        assert all(ours[name] == pytest.approx(theirs[name], rel=1e-12) for name in norms)
    ours, theirs = (list(rf.History.open(tmp_path / f"{name}-history").stages) for name in ("ranks", "alone"))
    assert [stage.after for stage in ours] == [stage.after for stage in theirs]
    assert len(ours) == 2


@pytest.mark.parametrize(
    ("form", "ranks"),
    [("fsdp", 2), pytest.param("fsdp", 4, marks=pytest.mark.slow), pytest.param("copies", 4, marks=pytest.mark.slow)],
)
def test_protected_domains_are_measured_as_on_the_whole_model(tmp_path: Path, form: str, ranks: int) -> None:
    run_ranks(ranks, "domains_program", str(tmp_path / "ranks"), form)
    domains_program.main(str(tmp_path / "alone"), "alone")
    together, alone = (json.loads((tmp_path / name).read_text()) for name in ("ranks", "alone"))
    assert together["warnings"] == alone["warnings"] == 2
    for ours, theirs in zip(together["rows"], alone["rows"], strict=True):
        assert ours.keys() == theirs.keys() >= {"damage/math", "kl/math", "damage/given", "kl/given", "overlap/code"}
        assert ours == pytest.approx(theirs, rel=1e-6)
        exact = [key for key in theirs if key.startswith(("kl/", "reward/", "overlap/", "changed", "update_sparsity"))]
        assert {key: ours[key] for key in exact} == {key: theirs[key] for key in exact}
    last = alone["rows"][-1]
    assert last["damage/math"] > 0
    assert last["kl/math"] > 0
    assert last["overlap/code"] > 0
    assert "reward/math" in last
