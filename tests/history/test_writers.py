"""Several processes at one history, and processes that are killed in the middle of it."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from rlforget.errors import HistoryError, OutputError
from rlforget.history import History
from rlforget.history.lock import locked
from tests.delta.random_weights import write_checkpoint

TENSORS = {"w": torch.arange(64.0)}

COMMIT = """
import sys, torch
from rlforget.history import History

history = History.open(sys.argv[1])
for number in range(int(sys.argv[3])):
    state = {"w": torch.arange(64.0) + 2 * number + 1 + (sys.argv[2] == "right")}
    history.commit(state, name=f"{sys.argv[2]}-{number}", wait=120)
    print(number, flush=True)
"""


@pytest.fixture
def history(tmp_path: Path) -> History:
    return History.init(tmp_path / "history", write_checkpoint(tmp_path / "base", TENSORS, 0))


def committer(history: History, name: str, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", COMMIT, str(history.folder), name, str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_processes_that_commit_at_once_both_do(history: History) -> None:
    both = [committer(history, name, 5) for name in ("left", "right")]
    for process in both:
        _, said = process.communicate(timeout=200)
        assert process.returncode == 0, said
    stages = history.stages
    assert {stage.name for stage in stages} == {f"{side}-{n}" for side in ("left", "right") for n in range(5)}
    assert [stage.parent for stage in stages] == [None, *(stage.id for stage in stages[:-1])]  # each on HEAD
    assert len(os.listdir(history.folder / "deltas")) == 10
    assert history.verify().sound


def test_a_process_that_waited_long_enough_says_so(history: History) -> None:
    with locked(history.folder, 0):
        begun = time.monotonic()
        for write in (
            lambda: history.commit({"w": torch.zeros(64)}, wait=0.2),
            lambda: history.gc(wait=0),
            lambda: history.tag("best", wait=0),
            lambda: history.untag("best", wait=0),
            lambda: History.init(history.folder, TENSORS, wait=0),
        ):
            with pytest.raises(HistoryError, match="another process"):
                write()
        assert time.monotonic() - begun < 20
        assert history.log() == []  # reading waits for nobody
    history.commit({"w": torch.zeros(64)}, wait=0)


@pytest.mark.parametrize("free", [0, 1000, 5000])
def test_a_full_disk_leaves_the_old_state(free: int, history: History, tmp_path: Path) -> None:
    history.commit({"w": torch.rand(64)}, name="a")
    before = (history.folder / "history.json").read_bytes()
    with _small_files(free):
        with pytest.raises(OutputError, match="too large"):
            history.commit({"w": torch.rand(64), "v": torch.rand(10_000)}, name="b")
        with pytest.raises(OutputError, match="too large"):
            History.init(tmp_path / "other", {"v": torch.rand(10_000)})
    assert (history.folder / "history.json").read_bytes() == before
    assert len(os.listdir(history.folder / "deltas")) == 1
    assert os.listdir(tmp_path / "other") == ["history.lock"]
    assert history.verify().sound


@contextmanager
def _small_files(limit: int) -> Iterator[None]:
    """Let this process write no file beyond `limit` bytes, as if the disk were full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("milliseconds", [2, 11])
def test_a_killed_process_leaves_the_old_or_the_new_state(milliseconds: int, history: History) -> None:
    process = committer(history, "killed", 1000)
    assert process.stdout is not None
    done = int(process.stdout.readline())
    time.sleep(milliseconds / 1000)
    process.send_signal(signal.SIGKILL)
    done = max([done, *map(int, process.stdout)]) + 1
    process.communicate()
    stages = history.stages
    assert len(stages) in (done, done + 1)
    assert history.verify().sound
    history.gc()
    assert sorted(os.listdir(history.folder / "deltas")) == sorted(Path(stage.delta.file).name for stage in stages)
    history.commit(TENSORS, name="after", wait=0)
    assert history.verify().sound
