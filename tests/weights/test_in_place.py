"""In-place writes of checkpoints: whole or not at all, whatever happens, and back again."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from rlforget.errors import (
    BusyError,
    CoordinateError,
    JournalError,
    LayoutError,
    OutputError,
    UnknownNameError,
    WrongBaseError,
)
from rlforget.weights import DTYPES, open_weights, records
from rlforget.weights.checkpoint import CheckpointWeights
from rlforget.weights.in_place import not_in_place, undo, write_in_place
from rlforget.weights.journal import WINDOW, Journal
from rlforget.weights.recovering import recover
from rlforget.weights.soundness import verify
from rlforget.weights.undo_records import forget, undo_log
from tests.interruption import Interrupter
from tests.torture.injection import FAULTS, KILLED, SHORT_WRITES, TORN, Fault, Outcome, Server
from tests.torture.jobs import Change, changes, digest

_GENERATOR = torch.Generator().manual_seed(0)
TENSORS = {
    "a": torch.randn(300, 7, generator=_GENERATOR),
    "b": torch.randn(5, 2, generator=_GENERATOR).bfloat16(),
    "c": torch.tensor(True),
    "d": torch.randint(0, 99, (40,), generator=_GENERATOR),
    "empty": torch.zeros(0, 3),
    "e": torch.randn(64, generator=_GENERATOR).to(torch.float8_e4m3fn),
}
TUNED = {name: tensor.clone() for name, tensor in TENSORS.items()}
TUNED["a"][::9] += 1
TUNED["a"][5:30] = -0.0
TUNED["b"] = -TUNED["b"]
TUNED["c"] = torch.tensor(False)
TUNED["d"][3] = -1
TUNED["e"][7:9] = float("nan")
THIRD = {name: tensor.roll(1, 0) if tensor.dim() else tensor for name, tensor in TUNED.items()}


def written(folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    """A checkpoint of two shards."""
    folder.mkdir(parents=True)
    parts = {"1.safetensors": ("a", "c", "empty"), "2.safetensors": ("b", "d", "e")}
    for file, names in parts.items():
        save_file({name: tensors[name] for name in names}, folder / file, metadata={"format": "pt"})
    weight_map = {name: file for file, names in parts.items() for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return written(tmp_path / "base", TENSORS)


@pytest.fixture
def tuned(tmp_path: Path) -> Path:
    return written(tmp_path / "tuned", TUNED)


@pytest.fixture
def third(tmp_path: Path) -> Path:
    return written(tmp_path / "third", THIRD)


def write(folder: Path, other: Path, note: str = "") -> Any:
    return write_in_place(CheckpointWeights(folder), changes(folder, other), note=note)


def cut_short(server: Server, folder: Path, other: Path) -> None:
    """Kill a write half-way through the weights."""
    calls = server.run("write", copied(folder, folder.parent / "count"), other, folder=folder.parent / "count").calls
    for at in range(calls):
        shutil.rmtree(folder.parent / "count")
        place = copied(folder, folder.parent / "count")
        outcome = server.run("write", place, other, fault=TORN, at=at, folder=place)
        if outcome.call == "pwrite64":
            break
    shutil.rmtree(folder)
    os.rename(place, folder)
    assert records.unfinished(folder)


def copied(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to))


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


PLAIN = {"1.safetensors", "2.safetensors", "config.json", "model.safetensors.index.json"}


def test_there_and_back_several_times(base: Path, tuned: Path, third: Path) -> None:
    states = [digest(folder) for folder in (base, tuned, third)]
    changed = sum(change.indices.numel() for change in changes(base, tuned))
    record = write(base, tuned, "to tuned")
    assert record.changed == changed
    assert digest(base) == states[1]
    second = write(base, third, "to third")
    assert digest(base) == states[2]
    assert [one.note for one in undo_log(base)] == ["to third", "to tuned"]
    assert undo_log(base) == [second, record]
    assert verify(base).to_dict() == {
        "path": str(base),
        "tensors": 6,
        "files": 2,
        "undoable": 2,
        "problems": [],
        "sound": True,
    }
    assert undo(base) == second
    assert digest(base) == states[1]
    assert undo(base) == record
    assert digest(base) == states[0]
    assert files(base) == PLAIN
    with pytest.raises(JournalError, match="--in-place can be undone"):
        undo(base)


def test_nothing_to_change_leaves_nothing(base: Path) -> None:
    assert write(base, base) is None
    assert files(base) == PLAIN


def test_the_files_keep_everything_else(base: Path, tuned: Path) -> None:
    inodes = {name: (base / name).stat().st_ino for name in PLAIN}
    write(base, tuned)
    assert {name: (base / name).stat().st_ino for name in PLAIN} == inodes
    for name in PLAIN:
        assert (base / name).read_bytes() == (tuned / name).read_bytes()


bits = st.sampled_from(DTYPES).flatmap(
    lambda dtype: st.tuples(st.just(dtype), st.integers(0, 300), st.floats(0, 1), st.integers(0, 2**32))
)


@given(st.lists(bits, min_size=1, max_size=4), st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_any_bits_of_any_dtype(tmp_path_factory: pytest.TempPathFactory, tensors: list[Any], parts: int) -> None:
    folder = tmp_path_factory.mktemp("any")
    before, after, given_changes = {}, {}, []
    for number, (dtype, numel, share, seed) in enumerate(tensors):
        generator = torch.Generator().manual_seed(seed)
        width, top = dtype.itemsize, 2 if dtype is torch.bool else 256
        old, new = torch.randint(0, top, (2, numel, width), dtype=torch.uint8, generator=generator)
        keep = torch.rand(numel, 1, generator=generator) >= share
        new = torch.where(keep, old, new)
        before[f"t{number}"], after[f"t{number}"] = (x.reshape(-1).view(dtype) for x in (old, new))
        integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[width]
        one, other = (x.reshape(-1).view(integers) for x in (old, new))
        at = (~keep.flatten()).nonzero().flatten()
        given_changes += [Change(f"t{number}", part, one[part], other[part]) for part in at.tensor_split(parts)]
    save_file(before, folder / "model.safetensors")
    original = (folder / "model.safetensors").read_bytes()
    write_in_place(CheckpointWeights(folder), given_changes)
    found = load_file(folder / "model.safetensors")
    assert all(torch.equal(found[n].view(torch.uint8), after[n].view(torch.uint8)) for n in after)
    assert verify(folder).sound
    if undo_log(folder):
        undo(folder)
    assert (folder / "model.safetensors").read_bytes() == original
    assert files(folder) == {"model.safetensors"}


@pytest.mark.parametrize("job", ["write", "undo"])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.kind)
def test_every_other_call_may_fail_or_be_the_last(
    server: Server, base: Path, tuned: Path, third: Path, fault: Fault, job: str, tmp_path: Path
) -> None:
    write(base, tuned, "before")
    if job == "undo":
        write(base, third)
    start, end = digest(base), digest(third if job == "write" else tuned)
    arguments = [third] if job == "write" else []
    name = "write" if job == "write" else "take_back"
    calls = server.run(name, copied(base, tmp_path / "clean"), *arguments, folder=tmp_path / "clean").calls
    assert calls >= (12 if job == "write" else 9)
    for at in range(FAULTS.index(fault) % 2, calls, 2):
        place = copied(base, tmp_path / str(at))
        outcome = server.run(name, place, *arguments, fault=fault, at=at, folder=place)
        _holds(server, place, fault, outcome, start, end)
        assert digest(place) in (start, end)  # opening it puts it right
        assert files(place) >= PLAIN
        kept = [record.note for record in undo_log(place)]
        assert kept == ([""] if digest(place) == (end if job == "write" else start) else []) + ["before"]
        assert verify(place, repair=True).sound
        assert all("undo" in name for name in files(place) - PLAIN)
        write(place, base)


def _holds(server: Server, place: Path, fault: Fault, outcome: Outcome, start: str, end: str) -> None:
    """Hold what a job said against what is there."""
    if fault in (KILLED, TORN):
        assert outcome.killed, outcome
        return
    state = server.run("show", place).text.strip().splitlines()[-1]
    if outcome.code == 0:
        assert state == end
        return
    assert outcome.code == 1, outcome
    assert "OutputError" in outcome.text or "UnfinishedWriteError" in outcome.text, outcome
    assert state in (start, end)
    if "UnfinishedWriteError" not in outcome.text:
        assert state == start, outcome


def test_short_writes_are_completed(server: Server, base: Path, tuned: Path) -> None:
    assert server.run("write", base, tuned, fault=SHORT_WRITES, folder=base).code == 0
    assert digest(base) == digest(tuned)
    assert server.run("take_back", base, fault=SHORT_WRITES, folder=base).code == 0
    assert load_file(base / "1.safetensors")["a"].equal(TENSORS["a"])


@pytest.mark.parametrize("fault", [KILLED, TORN], ids=lambda fault: fault.kind)
def test_recovery_may_itself_be_killed(server: Server, base: Path, tuned: Path, tmp_path: Path, fault: Fault) -> None:
    start = digest(base)
    cut_short(server, base, tuned)
    calls = server.run("show", copied(base, tmp_path / "clean"), folder=tmp_path / "clean").calls
    assert calls >= 5
    for at in range(calls):
        place = copied(base, tmp_path / str(at))
        assert server.run("show", place, fault=fault, at=at, folder=place).killed
        assert digest(place) == start
        assert files(place) == PLAIN


def test_whoever_opens_it_next_says_what_was_done(
    server: Server, base: Path, tuned: Path, caplog: pytest.LogCaptureFixture
) -> None:
    start = digest(base)
    cut_short(server, base, tuned)
    with caplog.at_level(logging.WARNING):
        open_weights(base)
    assert "had not finished; the bits from before it are back" in caplog.text
    assert digest(base) == start
    assert recover(base) == []
    cut_short(server, base, tuned)
    shown = server.run("show", base).text.splitlines()
    assert shown[0].startswith(f"rlforget: {base}: an in-place write of ")
    assert shown[1:] == [start]


def test_a_checkpoint_that_someone_writes_is_busy(server: Server, base: Path, tuned: Path) -> None:
    cut_short(server, base, tuned)
    descriptor = os.open(base, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    for attempt in (lambda: open_weights(base), lambda: undo(base), lambda: verify(base, repair=True)):
        with pytest.raises(BusyError, match="Wait until it has finished"):
            attempt()
    os.close(descriptor)
    open_weights(base)
    descriptor = os.open(base, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    open_weights(base)  # nothing is half done: reading is free
    with pytest.raises(BusyError):
        write(base, tuned)
    os.close(descriptor)


def test_a_read_only_folder_says_what_to_do(server: Server, base: Path, tuned: Path) -> None:
    cut_short(server, base, tuned)
    shown = server.run("show", base, fault=next(fault for fault in FAULTS if fault.kind == "EROFS"), folder=base)
    assert shown.code == 1
    assert "UnfinishedWriteError" in shown.text
    assert "Open it, or a copy of the whole folder, where it can be written" in shown.text
    assert server.run("show", copied(base, base.parent / "copy")).code == 0


def test_verify_reports_and_repairs(server: Server, base: Path, tuned: Path) -> None:
    start = digest(base)
    cut_short(server, base, tuned)
    (base.parent / ".rlforget-0123456789abcdef.partial").mkdir()
    (base / ".rlforget-0123456789abcdef.partial").write_text("x")
    report = verify(base)
    assert [problem.kind for problem in report.problems] == ["unfinished", "leftover", "leftover"]
    assert not report.sound
    assert records.unfinished(base)
    report = verify(base, repair=True)
    assert report.sound
    assert all(problem.repaired for problem in report.problems)
    assert not verify(base).problems
    assert digest(base) == start
    assert sorted(os.listdir(base.parent)) == ["base", "tuned"]


def test_weights_that_changed_since_are_left_alone(server: Server, base: Path, tuned: Path, third: Path) -> None:
    write(base, tuned)
    shutil.copyfile(third / "1.safetensors", base / "1.safetensors")
    held = (base / "1.safetensors").read_bytes()
    with pytest.raises(WrongBaseError, match="changed since by other means"):
        undo(base)
    assert (base / "1.safetensors").read_bytes() == held
    assert [problem.kind for problem in verify(base).problems] == ["record"]
    assert verify(base, repair=True).sound
    assert files(base) - PLAIN == {".rlforget/000001.unfit.safetensors"}
    assert undo_log(base) == []


def test_a_half_written_checkpoint_that_was_replaced_is_left_alone(
    server: Server, base: Path, tuned: Path, third: Path
) -> None:
    cut_short(server, base, tuned)
    shutil.copyfile(third / "1.safetensors", base / "1.safetensors")
    with pytest.raises(WrongBaseError, match="--repair"):
        open_weights(base)
    assert verify(base, repair=True).sound
    assert (base / "1.safetensors").read_bytes() == (third / "1.safetensors").read_bytes()
    cut_short(server, base, tuned)
    save_file({"a": torch.zeros(9)}, base / "1.safetensors")
    with pytest.raises(WrongBaseError, match="the file of"):
        recover(base)


def test_single_files_have_their_records_beside_them(tmp_path: Path) -> None:
    paths = [tmp_path / "one.safetensors", tmp_path / "two.safetensors", tmp_path / "new.safetensors"]
    for path, tensors in zip(paths, (TENSORS, TENSORS, TUNED), strict=True):
        save_file(tensors, path)
    one, two, new = paths
    write(one, new, "of one")
    write(two, new, "of two")
    assert [record.note for record in undo_log(one)] == ["of one"]
    undo(one)
    assert load_file(one)["a"].equal(TENSORS["a"])
    assert load_file(two)["a"].equal(TUNED["a"])
    undo(two)
    assert sorted(os.listdir(tmp_path)) == ["new.safetensors", "one.safetensors", "two.safetensors"]


@pytest.mark.parametrize("kind", ["file", "folder of links", "single file"])
def test_what_is_half_written_is_put_right_through_links_too(
    server: Server, base: Path, tuned: Path, tmp_path: Path, kind: str
) -> None:
    cut_short(server, base, tuned)
    links = tmp_path / "links"
    links.mkdir()
    if kind == "file":
        path = links / "any.safetensors"
        path.symlink_to(base / "1.safetensors")
    elif kind == "folder of links":
        path = links
        for name in PLAIN:
            (links / name).symlink_to(base / name)
    else:
        path = links
        (links / "model.safetensors").symlink_to(base / "1.safetensors")
    report = verify(path)
    assert [problem.kind for problem in report.problems] == ["unfinished"]
    opened = CheckpointWeights(path)
    assert opened.tensor("a").equal(TENSORS["a"])
    assert not records.unfinished(base)
    assert load_file(base / "1.safetensors")["a"].equal(TENSORS["a"])
    assert load_file(base / "2.safetensors")["d"].equal(TENSORS["d"])


def test_two_writes_that_were_cut_short_are_both_repaired(base: Path, tuned: Path, third: Path) -> None:
    start = digest(base)
    write(base, tuned)
    write(base, third)
    for number in (1, 2):
        assert records.as_unfinished(base, number)
    report = verify(base, repair=True)
    assert [(problem.kind, problem.repaired) for problem in report.problems] == [("unfinished", True)] * 2
    assert report.sound
    assert digest(base) == start


def test_records_can_be_dropped(base: Path, tuned: Path, third: Path, tmp_path: Path) -> None:
    sizes = [write(base, other).path.stat().st_size for other in (tuned, third)]
    (base / ".rlforget" / "000009.unfit.safetensors").write_bytes(b"unfit")
    assert forget(base, dry_run=True) == sum(sizes) + 5
    assert len(undo_log(base)) == 2
    assert forget(base / "1.safetensors") == 0  # they are of both files
    assert forget(base) == sum(sizes) + 5
    assert files(base) == PLAIN
    assert digest(base) == digest(third)
    assert forget(base) == 0
    write(base / "1.safetensors", tuned / "1.safetensors")
    write(base / "2.safetensors", tuned / "2.safetensors")
    assert forget(base / "1.safetensors") > 0
    assert [record.files for record in undo_log(base)] == [("2.safetensors",)]


def test_a_file_of_a_folder_that_was_written_as_a_whole(base: Path, tuned: Path) -> None:
    write(base, tuned)
    with pytest.raises(OutputError, match="2 files at once"):
        undo(base / "1.safetensors")
    assert digest(base) == digest(tuned)


def test_links_are_refused(base: Path, tuned: Path) -> None:
    for link in (os.link, os.symlink):
        os.rename(base / "1.safetensors", base.parent / "blob")
        link(base.parent / "blob", base / "1.safetensors")
        with pytest.raises(OutputError, match="link"):
            write(base, tuned)
        os.remove(base / "1.safetensors")
        os.rename(base.parent / "blob", base / "1.safetensors")
    (base.parent / "name").symlink_to(base)
    write(base.parent / "name", tuned)  # a link to the folder is only a name for it
    assert digest(base) == digest(tuned)


def test_what_is_refused_changes_nothing(base: Path, tuned: Path, third: Path) -> None:
    start, opened = digest(base), CheckpointWeights(base)
    index, bit = torch.tensor([3]), torch.tensor([0], dtype=torch.int32)
    held = opened.bits("a")[3:4]
    wrong: list[tuple[type[Exception], list[Change]]] = [
        (WrongBaseError, [*list(changes(base, tuned))[:2], *list(changes(third, tuned))[2:3]]),
        (WrongBaseError, [Change("a", index, held + 1, bit)]),
        (UnknownNameError, [Change("z", index, held, bit)]),
        (LayoutError, [Change("b", index, held, bit)]),
        (LayoutError, [Change("a", index, held, torch.cat([bit, bit]))]),
        (CoordinateError, [Change("a", torch.tensor([2100]), held, bit)]),
        (CoordinateError, [Change("a", torch.tensor([-1]), held, bit)]),
        (CoordinateError, [Change("a", index, held, bit), Change("a", index, held, bit)]),
        (CoordinateError, [Change("a", torch.tensor([4, 3]), opened.bits("a")[[4, 3]], torch.cat([bit, bit]))]),
    ]
    for fault, given_changes in wrong:
        with pytest.raises(fault):
            write_in_place(opened, given_changes)
        assert digest(base) == start
        assert files(base) == PLAIN
    assert "new folder" in str(not_in_place("x", "a resized tensor"))


def test_an_interrupt_in_the_midst_of_the_changes(base: Path, tuned: Path) -> None:
    start = digest(base)

    def interrupted() -> Iterator[Change]:
        yield from list(changes(base, tuned))[:3]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_in_place(CheckpointWeights(base), interrupted())
    assert digest(base) == start
    assert files(base) == PLAIN


@pytest.mark.parametrize("job", ["write", "undo"])
def test_an_interrupt_at_any_line(base: Path, tuned: Path, job: str) -> None:
    if job == "undo":
        write(base, tuned)
    start, end = digest(base), digest(tuned if job == "write" else written(base.parent / "again", TENSORS))
    given_changes = list(changes(base, tuned)) if job == "write" else []
    counting = Interrupter(None)

    def work(place: Path) -> object:
        return write_in_place(CheckpointWeights(place), given_changes) if job == "write" else undo(place)

    counting.run(lambda: work(copied(base, base.parent / "count")))
    for line in range(0, counting.lines, 1 + counting.lines // 150):
        place, interrupter = copied(base, base.parent / str(line)), Interrupter(line)
        raised = interrupter.run(lambda place=place: work(place))  # type: ignore[misc]
        # With its record removed an undo is done: an interrupt after that comes too late to stop it.
        expected = [end, start] if raised and job == "undo" else [start if raised else end]
        assert digest(place) in expected, interrupter.place
        assert verify(place).sound
        shutil.rmtree(place)


def test_tied_names_are_written_once(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(4)}, tmp_path / "model.safetensors", metadata={"tied": "a"})
    opened, at = CheckpointWeights(tmp_path), torch.tensor([1])
    zero, one = torch.zeros(1, dtype=torch.int32), torch.ones(1, dtype=torch.int32)
    with pytest.raises(CoordinateError, match="under one of its names"):
        write_in_place(opened, [Change("a", at, zero, one), Change("tied", at, zero, one)])
    assert write_in_place(opened, [Change("tied", at, zero, one)]) is not None
    assert opened.bits("a").tolist() == [0, 1, 0, 0]


def test_records_are_checked(base: Path, tuned: Path) -> None:
    path = write(base, tuned).path
    whole = path.read_bytes()
    for position in range(0, len(whole), 97):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x10]) + whole[position + 1 :])
        try:
            undo(base)
        except (JournalError, WrongBaseError, OutputError):
            assert digest(base) == digest(tuned)
        else:  # a flipped bit in the note, or in a blank of the header
            path.parent.mkdir(exist_ok=True)
            write(base, tuned)
    for length in (0, 7, 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(JournalError):
            undo(base)
    path.write_bytes(whole.replace(b"1.safetensors", b"../x.safetens"))
    with pytest.raises(JournalError):
        undo(base)
    assert verify(base, repair=True).sound


def test_memory_does_not_follow_the_size(tmp_path: Path) -> None:
    numel = 8 * WINDOW + 5
    save_file({"a": torch.zeros(numel, dtype=torch.int8)}, tmp_path / "model.safetensors")

    def dense() -> Iterator[Change]:
        for start in range(0, numel, WINDOW // 2):
            at = torch.arange(start, min(start + WINDOW // 2, numel), dtype=torch.int32)
            old = torch.zeros(at.numel(), dtype=torch.int8)
            yield Change("a", at, old, old + 1)

    opened = CheckpointWeights(tmp_path)
    tracemalloc.start()
    record = write_in_place(opened, dense())
    assert record is not None
    assert record.path.stat().st_size < 2.01 * numel  # a run needs no indices
    undo(tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 8 * WINDOW
    tracemalloc.stop()
    far = torch.tensor([0, WINDOW, 3 * WINDOW, numel - 1])
    old = torch.zeros(4, dtype=torch.int8)
    record = write_in_place(opened, [Change("a", far, old, old + 1)])
    assert record is not None
    assert len(list(Journal(record.path).pieces())) == 4
    assert opened.bits("a").nonzero().flatten().tolist() == far.tolist()
