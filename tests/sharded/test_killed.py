"""A rank that fails or is killed in the middle of a write leaves the others with their old bits."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("how", "ranks"),
    [("kill", 2), pytest.param("kill", 4, marks=pytest.mark.slow), pytest.param("raise", 2, marks=pytest.mark.slow)],
)
def test_the_others_put_their_bits_back(tmp_path: Path, how: str, ranks: int) -> None:
    processes = start(ranks, "tests.sharded.killed_program", str(tmp_path), how)
    ended = [process.wait(timeout=300) for process in processes]
    assert ended == [-signal.SIGKILL if (how, rank) == ("kill", 1) else 0 for rank in range(ranks)]
    for rank in range(ranks):
        if (how, rank) == ("kill", 1):
            assert not (tmp_path / f"{rank}.txt").exists()
            continue
        held, found = (tmp_path / f"{rank}.txt").read_text().split(" ", 1)
        assert held == "True"
        if how == "raise":
            assert found.startswith("MemoryError" if rank == 1 else "WorldError: rank 1:")
            assert "no memory on this rank" in found
        else:
            assert found.startswith("WorldError: the other ranks")


def start(ranks: int, *program: str) -> list[subprocess.Popen[bytes]]:
    """Start ranks without an agent, which would end all of them where one is killed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [sys.executable, "-m", *program],
            cwd=ROOT,
            env=shared | {"RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank)},
        )
        for rank in range(ranks)
    ]
