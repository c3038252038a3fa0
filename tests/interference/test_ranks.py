"""Ranks share the work on one conflict subspace, and end with what one process finds."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from rlforget.weights import ranks
from rlforget.weights.ranks import mine, summed, world

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


def shares(count: int, ranks_: int, monkeypatch: pytest.MonkeyPatch) -> Sequence[list[int]]:
    monkeypatch.setattr(ranks, "_running", lambda: True)
    monkeypatch.setattr(ranks.distributed, "get_world_size", lambda: ranks_)
    found = []
    for rank in range(ranks_):
        monkeypatch.setattr(ranks.distributed, "get_rank", lambda rank=rank: rank)
        found.append([position for position in range(count) if mine(position)])
    return found


@pytest.mark.parametrize(("count", "of"), [(7, 1), (16, 4), (5, 8), (0, 3)])
def test_work_is_dealt_once_and_evenly(count: int, of: int, monkeypatch: pytest.MonkeyPatch) -> None:
    found = shares(count, of, monkeypatch)
    assert sorted(position for own in found for position in own) == list(range(count))
    if count == 16:
        assert len({sum(position + 1 for position in own) for own in found}) == 1  # later pieces cost more


def test_alone_all_is_mine() -> None:
    assert world() == 1
    assert all(mine(position) for position in range(5))
    assert torch.equal(summed(torch.ones(3)), torch.ones(3))
