"""New files and folders on failing disks, and drafts of processes that died."""

from __future__ import annotations

import fcntl
import os
import subprocess
import threading
from pathlib import Path

import pytest

from rlforget.errors import BusyError, OutputError
from rlforget.weights.atomic import check_new_folder, new_file, new_folder
from rlforget.weights.drafts import clear_leftovers, leftovers
from rlforget.weights.renaming import exchange, rename_into_free
from tests.torture.disk import small_disk
from tests.torture.injection import COUNTED, FAULTS, KILLED, OLD_SYSTEM, TORN, Fault, Outcome, Server

TREES = {"file": "write_file", "folder": "write_folder"}


def tree(path: Path) -> dict[str, str] | None:
    """What lies at a path: {relative name: text}; None where nothing does."""
    if path.is_file():
        return {"": path.read_text()}
    if not path.is_dir():
        return None
    return {str(file.relative_to(path)): file.read_text() for file in sorted(path.rglob("*")) if file.is_file()}


def meets(server: Server, job: str, place: Path, fault: Fault, at: int, old: str | None) -> Outcome:
    """Run a job that writes `new` over `old`, and hold that one of the two is there afterwards, whole, and no more."""
    place.parent.mkdir()
    if old is not None:
        assert server.run(job, place, old).code == 0
    states = {"old": tree(place)}
    outcome = server.run(job, place, "new", fault=fault, at=at, folder=place.parent)
    found = tree(place)
    assert outcome.code in (0, 1, -9), outcome
    assert server.run(job, place, "new").code == 0, outcome  # which also clears away what was left
    states["new"] = tree(place)
    assert found in ([states["new"]] if outcome.code == 0 else list(states.values())), outcome
    assert os.listdir(place.parent) == [place.name]
    return outcome


@pytest.mark.parametrize("old", [None, "old"])
@pytest.mark.parametrize("kind", TREES)
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.kind)
def test_every_call_may_fail_or_be_the_last(
    server: Server, tmp_path: Path, kind: str, old: str | None, fault: Fault
) -> None:
    job = TREES[kind]
    calls = meets(server, job, tmp_path / "clean" / "x", COUNTED, 0, old).calls
    assert calls >= (6 if kind == "file" else 12)
    for at in range(calls):
        outcome = meets(server, job, tmp_path / f"{at}" / "x", fault, at, old)
        assert outcome.call
        if fault in (KILLED, TORN):
            assert outcome.killed
        elif outcome.code:
            assert "OutputError" in outcome.text
            assert os.strerror(fault.error) in outcome.text


def test_a_fault_that_passes_leaves_nothing_behind(server: Server, tmp_path: Path) -> None:
    once = next(fault for fault in FAULTS if fault.kind == "EIO once")
    for at in range(server.run("write_folder", tmp_path / "x", "old", folder=tmp_path).calls):
        (tmp_path / f"{at}").mkdir()
        outcome = server.run("write_folder", tmp_path / f"{at}" / "x", "new", fault=once, at=at, folder=tmp_path)
        expected = [] if outcome.code else ["x"]
        assert [name for name in os.listdir(tmp_path / f"{at}") if outcome.call != "rmdir"] == expected, outcome


def test_without_renameat2_the_old_folder_is_never_lost(server: Server, tmp_path: Path) -> None:
    """Its fallback moves the old folder aside first; a kill between the two steps leaves it to the next write."""
    for kind, job in TREES.items():
        meets(server, job, tmp_path / kind / "x", OLD_SYSTEM, 0, "old")
        meets(server, job, tmp_path / f"{kind} anew" / "x", OLD_SYSTEM, 0, None)


def test_what_was_moved_aside_comes_back(tmp_path: Path) -> None:
    (tmp_path / ".rlforget-0123456789abcdef.before-model").mkdir()
    (tmp_path / ".rlforget-0123456789abcdef.before-model" / "a").write_text("a")
    (tmp_path / ".rlforget-0123456789abcdef.before-taken").mkdir()
    (tmp_path / "taken").mkdir()
    with new_file(tmp_path / "other") as file:
        file.write(b"x")
    assert sorted(os.listdir(tmp_path)) == ["model", "other", "taken"]
    assert os.listdir(tmp_path / "model") == ["a"]


def test_drafts_of_the_living_stay_and_those_of_the_dead_go(tmp_path: Path) -> None:
    (tmp_path / ".rlforget-0123456789abcdef.partial").mkdir()
    (tmp_path / ".rlforget-0123456789abcdef.partial" / "x").write_text("x")
    (tmp_path / ".rlforget-fedcba9876543210.partial").write_text("x")
    os.mkfifo(tmp_path / ".rlforget-0000000000000000.partial")
    os.symlink("/", tmp_path / ".rlforget-1111111111111111.partial")
    mine = [".rlforget-notes", ".rlforget-0.partial", "rlforget-0123456789abcdef.partial"]
    for name in mine:
        (tmp_path / name).write_text("mine")
    assert len(leftovers(tmp_path)) == 3
    with new_folder(tmp_path / "one") as draft, new_file(tmp_path / "two") as file:
        file.write(b"x")
        (draft / "x").write_text("x")
        clear_leftovers(tmp_path)
        assert (draft / "x").exists()
    assert sorted(os.listdir(tmp_path)) == sorted([*mine, "one", "two", ".rlforget-1111111111111111.partial"])


def test_many_writers_at_once_lose_no_draft(tmp_path: Path) -> None:
    def work(number: int) -> None:
        for turn in range(20):
            with new_folder(tmp_path / f"{number}-{turn}") as folder:
                (folder / "x").write_text("x")
            with new_file(tmp_path / f"{number}-{turn}.txt") as file:
                file.write(b"x")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(os.listdir(tmp_path)) == 4 * 20 * 2


def test_one_of_two_writers_of_one_place_is_told(tmp_path: Path) -> None:
    def write(who: str) -> None:
        with new_folder(tmp_path / "x") as folder:
            (folder / "who").write_text(who)
            if who == "late":
                write("early")

    with pytest.raises(OutputError, match="existing"):
        write("late")
    assert tree(tmp_path / "x") == {"who": "early"}


def test_a_folder_that_is_written_in_place_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "model.safetensors").write_text("old")
    descriptor = os.open(tmp_path / "x", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(BusyError, match="Wait"), new_folder(tmp_path / "x", force=True):
        pass
    os.close(descriptor)
    assert os.listdir(tmp_path) == ["x"]


def test_renames_never_replace_by_accident(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    with pytest.raises(FileExistsError):
        rename_into_free(tmp_path / "a", tmp_path / "b")
    assert exchange(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a").read_text() == "b"
    with pytest.raises(FileNotFoundError):
        exchange(tmp_path / "a", tmp_path / "gone")


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "64k") as disk:
        (disk / "model").mkdir()
        (disk / "model" / "model.safetensors").write_bytes(bytes(1000))
        for attempt in range(2):
            with pytest.raises(OutputError, match="No space left"), new_folder(disk / "model", force=True) as folder:
                (folder / "big").write_bytes(bytes(10 + attempt) * 100_000)
            with pytest.raises(OutputError, match="No space left"), new_file(disk / "file") as file:
                file.write(bytes(100_000))
        assert tree(disk) == {"model/model.safetensors": "\0" * 1000}
        with new_file(disk / "file") as file:
            file.write(bytes(10_000))


def test_a_disk_that_is_really_read_only(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "64k") as disk:
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        with pytest.raises(OutputError, match="Read-only"), new_file(disk / "file"):
            pass
        with pytest.raises(OutputError, match="Read-only"):
            check_new_folder(disk / "folder", force=False)
