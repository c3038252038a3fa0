"""Ranks that hold shards of a model measure what one process measures of the whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import rlforget as rf
from tests.training.monitor.ranks_program import main

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("form", "ranks"),
    [
        ("fsdp", 2),
        pytest.param("copies", 4, marks=pytest.mark.slow),
        pytest.param("tensor", 4, marks=pytest.mark.slow),
    ],
)
def test_shards_add_up_to_the_whole(tmp_path: Path, form: str, ranks: int) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    program = [*command, "-m", "tests.training.monitor.ranks_program", str(tmp_path / "ranks"), form]
    done = subprocess.run(
        program, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
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
