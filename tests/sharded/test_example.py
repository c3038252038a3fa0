"""The example of a sharded repair leaves what one process would write."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import rlforget as rf
from rlforget.domains import miniature
from tests.interference.conftest import perturbed

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_repair_sharded(tmp_path: Path) -> None:
    model, tokenizer = miniature.load()
    for name, stage in (("math", model), ("writing", perturbed(model, 0.01, seed=1))):
        stage.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    example = [str(ROOT / "examples" / "repair_sharded.py"), "math", "writing", "math", "writing", "repaired", "8"]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *example],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "coordinates changed" in done.stdout
    live, _ = miniature.load()
    live.load_state_dict(perturbed(model, 0.01, seed=1).state_dict())
    delta = rf.diff(tmp_path / "math", live)
    subspace = rf.conflict_subspace(live, delta, ["math"], ["writing"], samples=8, tokenizer=tokenizer)
    rf.rollback(live, delta, subspace)
    left = rf.diff(tmp_path / "repaired", live)
    whole = rf.diff(tmp_path / "writing", live)
    assert left.stats().total.l2 <= 1e-3 * whole.stats().total.l2
