"""Ranks share the work on one conflict subspace, and end with what one process finds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from .ranks_program import main

ROOT = Path(__file__).resolve().parents[2]


def test_torchrun_gives_every_rank_what_one_process_finds(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    program = [*command, "-m", "tests.interference.ranks_program", str(tmp_path)]
    done = subprocess.run(
        program, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    main(str(tmp_path))
    zero, one, alone = (torch.load(tmp_path / f"{name}.pt") for name in (0, 1, "alone"))
    assert list(zero["correction"]) == list(alone["correction"])
    assert all(torch.equal(zero["correction"][name], one["correction"][name]) for name in zero["correction"])
    together, apart = (torch.cat([v.flatten() for v in x["correction"].values()]) for x in (zero, alone))
    assert float((together - apart).norm() / apart.norm()) < 1e-5
    assert zero["damage"] == pytest.approx(alone["damage"], rel=1e-6)
