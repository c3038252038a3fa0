"""A rank is killed in the middle: the other ends soon and says which, and the old state is there for the next start."""

from __future__ import annotations

import json
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cli.conftest import run
from tests.cli.together.program import outcome
from tests.cli.together.test_commands import Pair, ended, pair, started, torchrun

__all__ = ["pair"]

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Kill:
    """Which rank is killed, and when: before the `call`-th call of a function on the rank `on`."""

    victim: int
    on: int
    at: str
    call: int = 1

    def strike(self, folder: Path, *arguments: object) -> None:
        """Run a command by two processes, and hold that the one that is left ends soon and names the other."""
        plan = json.dumps({**vars(self), "marker": str(folder / "marker")})
        begun = time.monotonic()
        done = torchrun(2, "tests.cli.together.killed", plan, *arguments)
        assert time.monotonic() - begun < 45
        assert done.returncode == 1
        assert f"rlforget: rank {self.victim} of 2: expected all of them to go on" in done.stderr, done.stderr
        assert done.stderr.count("rlforget: ") == 1
        assert "SIGKILL" in done.stderr


WRITER = "rlforget.delta.file.writer.DeltaWriter"
DIFFS = [
    Kill(1, 1, f"{WRITER}._write_frame", 2),
    Kill(0, 0, f"{WRITER}._write_frame", 2),
    Kill(1, 0, f"{WRITER}._append", 3),
    Kill(0, 0, "rlforget.weights.atomic._take_place"),
]
APPLIES = [
    Kill(1, 1, "rlforget.weights.saving.write_fully", 3),
    Kill(0, 0, "rlforget.weights.saving.write_fully", 3),
    Kill(0, 0, "rlforget.weights.atomic._take_place"),
]
IN_PLACE = [
    Kill(0, 0, "rlforget.weights.shards.write_fully", 2),
    Kill(1, 0, "rlforget.weights.shards.write_fully", 2),
    Kill(1, 0, "rlforget.weights.recording.Recorder.add", 2),
]


def named(kill: Kill) -> str:
    return f"{kill.victim}-{kill.at.rpartition('.')[2]}-{kill.call}"


@pytest.mark.parametrize("kill", DIFFS, ids=named)
def test_a_diff_leaves_nothing(pair: Pair, tmp_path: Path, kill: Kill) -> None:
    kill.strike(tmp_path, "diff", pair.before, pair.after, "-o", tmp_path / "d")
    assert not (tmp_path / "d").exists()
    assert run("diff", pair.before, pair.after, "-o", tmp_path / "d").code == 0
    assert {path.name for path in tmp_path.iterdir()} <= {"d", "marker"}


@pytest.mark.parametrize("kill", APPLIES, ids=named)
def test_a_new_folder_appears_whole_or_not_at_all(pair: Pair, tmp_path: Path, kill: Kill) -> None:
    assert outcome(["diff", str(pair.before), str(pair.after), "-o", str(tmp_path / "d")])["code"] == 0
    kill.strike(tmp_path, "apply", pair.before, tmp_path / "d", "-o", tmp_path / "model")
    assert not (tmp_path / "model").exists()
    assert outcome(["apply", str(pair.before), str(tmp_path / "d"), "-o", str(tmp_path / "model")])["code"] == 0
    assert {path.name for path in tmp_path.iterdir()} <= {"d", "model", "marker"}


@pytest.mark.parametrize("kill", IN_PLACE, ids=named)
def test_in_place_the_next_start_finds_the_old_bits(pair: Pair, tmp_path: Path, kill: Kill) -> None:
    model, tuned = tmp_path / "model", tmp_path / "tuned"
    for folder, like in ((model, pair.before), (tuned, pair.after)):  # what changes without resizing
        shutil.copytree(pair.before, folder)
        shutil.copyfile(like / "model-00001-of-00002.safetensors", folder / "model-00001-of-00002.safetensors")
    assert outcome(["diff", str(model), str(tuned), "-o", str(tmp_path / "d")])["code"] == 0
    held = {path.name: path.read_bytes() for path in model.iterdir()}
    kill.strike(tmp_path, "apply", model, tmp_path / "d", "--in-place")
    if kill.victim == 0:  # the other one writes nothing, so what it has written is still there
        assert {path.name: path.read_bytes() for path in model.iterdir() if path.is_file()} != held
    again = torchrun(2, "rlforget", "diff", pair.before, model, "--exit-code")
    assert again.returncode == 0, again.stderr
    assert {path.name: path.read_bytes() for path in model.iterdir()} == held


def test_a_stop_of_all_leaves_nothing(pair: Pair, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    plan = json.dumps({**vars(Kill(2, 0, f"{WRITER}._append", 3)), "marker": str(marker)})  # no rank is the victim
    going = started(2, "tests.cli.together.killed", plan, "diff", pair.before, pair.after, "-o", tmp_path / "d")
    while not marker.exists():
        assert going.poll() is None, "it ended before it got there"
        time.sleep(0.1)
    going.send_signal(signal.SIGTERM)
    done = ended(going)
    assert done.returncode != 0
    assert done.stderr.count("rlforget: ") == done.stderr.count("rlforget: stopped by a signal") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["marker"]
