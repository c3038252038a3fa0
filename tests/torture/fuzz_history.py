"""Histories that are damaged with knowledge of their structure: each gives a named error or a correct result.

    python -m tests.torture.fuzz_history --count 20000 --seed 0

One to three things in a sound history are changed: a value of the index, its text, a delta, the base, what kind of
file one of them is. Half of the time the stages' ids, and the checksums of altered deltas, are made to fit again, so
that the change reaches the code behind them. Then every way to read it is tried, and a commit. Told apart:

    refused    an error of rlforget.errors wherever the change matters
    read       stages whose ids are the old ones hold the old weights, the others what their records say
    failed     anything else: another exception, other weights, a file outside of the history opened or changed, over
               5 s, or memory that grew by more than 512 MiB
"""

from __future__ import annotations

import argparse
import copy
import faulthandler
import hashlib
import json
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from rlforget.errors import RlforgetError
from rlforget.history import History
from rlforget.history.stage import Stage, stage_id
from rlforget.weights.digest import weights_digest
from tests.delta.random_weights import Tensors, same_bits, write_checkpoint
from tests.torture.fuzz_delta_files import MOST_MEMORY, MOST_SECONDS, Report, _resident

ODD: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 2**31, 2**63, 10**400, 0.5, 1e308, [], {}, [[]], {"a": {}}, "", "x", "HEAD", "base"),
    *("0" * 64, "f" * 32, "\ud800", "\x00", "\x1b[2J", "é" * 70, "a" * 5000, "~", "a~1", "-rf", "2026-01-01T00:00:00Z"),
    *(
        "..",
        "../elsewhere",
        "/",
        "/etc",
        "/dev/zero",
        "/dev/stdin",
        "deltas",
        "base/../../elsewhere",
        "../history",
        ".",
    ),
)
"""Values that may stand where another is expected."""

PATHS = (
    *("../outside/x.delta.safetensors", "deltas/../../outside/x.delta.safetensors", "deltas/x/y.delta.safetensors"),
    *("/tmp/x.delta.safetensors", "deltas/.delta.safetensors", "deltas/..delta.safetensors", "base/model.safetensors"),
    *("deltas//0001-a.delta.safetensors", "./deltas/0001-a.delta.safetensors", "deltas/0001-a.delta.safetensors/"),
    *("deltas\\0001-a.delta.safetensors", "deltas/0001-a.delta.safetensors\x00", "DELTAS/0001-a.delta.safetensors"),
)
"""Paths of delta files, none of which is one."""


@dataclass
class Case:
    """A history that is being changed.

    Attributes:
        folder: Its folder.
        raw: Its index.
        text: The text to write in place of `raw`, if there is one.
    """

    folder: Path
    raw: Any
    text: bytes | None = None

    def file(self, rng: random.Random) -> Path:
        """Choose a delta or a file of the base, to be altered; never one that a link leads to."""
        folders = [folder for name in ("deltas", "base") if not (folder := self.folder / name).is_symlink()]
        files = sorted(path for folder in folders for path in folder.glob("*") if not path.is_symlink())
        return rng.choice(files)


NOTHING_THERE = (AttributeError, TypeError, KeyError, IndexError, ValueError, OSError)
"""What is raised where an earlier change left nothing to change."""


# -- changes -----------------------------------------------------------------------------------------------------------


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Return every (container, key) under a value."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    found: list[tuple[Any, Any]] = []
    for key in keys:
        found += [(value, key), *_places(value[key])]
    return found


def _place(case: Case, rng: random.Random) -> tuple[Any, Any]:
    return rng.choice(_places(case.raw))


def _odd(case: Case, rng: random.Random) -> None:
    container, key = _place(case, rng)
    container[key] = copy.deepcopy(rng.choice(ODD))


def _edited(case: Case, rng: random.Random) -> None:
    """Change a digit, a letter or a sign of a value."""
    container, key = _place(case, rng)
    value = container[key]
    if isinstance(value, str) and value:
        at = rng.randrange(len(value))
        container[key] = (
            value[:at] + rng.choice(["", "0", "f", "g", "/", ".", "A", "\n"]) + value[at + rng.randrange(2) :]
        )
    elif isinstance(value, bool | int | float):
        container[key] = rng.choice([value + 1, value - 1, -value, float(value), str(value)])


def _dropped(case: Case, rng: random.Random) -> None:
    container, key = _place(case, rng)
    del container[key]


def _added(case: Case, rng: random.Random) -> None:
    container, key = _place(case, rng)
    if isinstance(container, list):
        container.insert(key, rng.choice([copy.deepcopy(container[key]), rng.choice(ODD)]))
    else:
        container[rng.choice(["", "more", "id", "parent", "\ud800", str(key) + " "])] = rng.choice([container[key], 1])


def _swapped(case: Case, rng: random.Random) -> None:
    (one, first), (other, second) = _place(case, rng), _place(case, rng)
    one[first], other[second] = copy.deepcopy(other[second]), copy.deepcopy(one[first])


def _stages(case: Case, rng: random.Random) -> None:
    """Put stages in another order, twice, or under other parents."""
    stages = case.raw["stages"]
    kind = rng.randrange(4)
    if kind == 0:
        rng.shuffle(stages)
    elif kind == 1:
        stages.append(json.loads(json.dumps(rng.choice(stages))))
    elif kind == 2:
        rng.choice(stages)["parent"] = rng.choice([None, *(stage["id"] for stage in stages)])
    else:
        child = rng.choice(stages)
        parent = rng.choice(stages)
        child["parent"], child["before"] = parent["id"], parent["after"]


def _path(case: Case, rng: random.Random) -> None:
    rng.choice(case.raw["stages"])["delta"]["file"] = rng.choice(PATHS)


def _base(case: Case, rng: random.Random) -> None:
    case.raw["base"]["path"] = rng.choice(ODD)
    case.raw["base"]["copied"] = rng.random() < 0.3


def _tags(case: Case, rng: random.Random) -> None:
    case.raw["tags"][rng.choice(["best", "a", "HEAD", "x" * 99, "../x"])] = rng.choice([case.raw["stages"][0]["id"], 1])


def _text(case: Case, rng: random.Random) -> None:
    """Change the text behind the JSON."""
    text = bytearray(json.dumps(case.raw).encode())
    kind = rng.randrange(8)
    place = rng.randrange(len(text))
    if kind == 0:
        text = text[:place]
    elif kind == 1:
        text[place] = rng.randrange(256)
    elif kind == 2:
        text[place:place] = rng.choice([b"[", b"{", b'"', b"\\", b"\xff", b"\x00", b"NaN", b"1" * 5000])
    elif kind == 3:
        text = bytearray(rng.choice([b"[", b'{"a":']) * rng.choice([10, 10_000, 1_000_000]))
    elif kind == 4:
        text = bytearray(rng.choice([b"", b"null", b"[]", b"{}", b"1", b'""', b"\xef\xbb\xbf" + bytes(text)]))
    elif kind == 5:
        text = bytearray(text.replace(b'"tags"', b'"tags": {}, "tags"'))
    elif kind == 6:
        text = bytearray(text.replace(b"0.5", rng.choice([b"1e999", b"NaN", b"-Infinity", b"0." + b"5" * 10_000])))
    else:
        text = bytearray(rng.randbytes(rng.randrange(300)))
    case.text = bytes(text)


def _content(case: Case, rng: random.Random) -> None:
    """Change bytes of a delta, or of the base."""
    path = case.file(rng)
    if not path.is_file():
        return  # a pipe, after another change
    data = bytearray(path.read_bytes())
    place = rng.randrange(len(data))
    kind = rng.randrange(3)
    if kind == 0:
        data[place] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del data[place:]
    else:
        data[place:place] = rng.randbytes(rng.randrange(1, 9))
    path.write_bytes(data)


def _kind(case: Case, rng: random.Random) -> None:
    """Put a link, a folder, a pipe or nothing in the place of a file or folder, or another delta."""
    path = case.file(rng)
    if rng.random() < 0.2:
        path = path.parent
    elsewhere = case.folder.parent / "outside" / ("x.delta.safetensors" if path.suffix else "")
    deltas = sorted(case.folder.glob("deltas/*"))
    kind = rng.randrange(5)
    content = b""
    if kind == 0:
        content = next(delta.read_bytes() for delta in deltas[rng.randrange(len(deltas)) :] if delta.is_file())
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    if kind == 0 and path.parent.is_dir() and path.suffix:
        path.write_bytes(content)
    elif kind == 1:
        path.symlink_to(elsewhere)
    elif kind == 2:
        path.mkdir()
    elif kind == 3:
        os.mkfifo(path)


CHANGES: dict[str, Callable[[Case, random.Random], None]] = {
    "odd value": _odd,
    "edited value": _edited,
    "dropped": _dropped,
    "added": _added,
    "swapped": _swapped,
    "stages": _stages,
    "delta path": _path,
    "base path": _base,
    "tags": _tags,
    "text": _text,
    "content": _content,
    "kind of file": _kind,
}


def fitted(case: Case) -> None:
    """Make ids fit records again, and records the deltas that they name; what is no record is left."""
    renamed: dict[Any, str] = {}
    for stage in case.raw["stages"]:
        if stage["parent"] in renamed:
            stage["parent"] = renamed[stage["parent"]]
        path = case.folder / str(stage["delta"]["file"])
        if path.parent == case.folder / "deltas" and path.is_file() and not path.is_symlink():
            data = path.read_bytes()
            stage["delta"].update(size=len(data), sha256=hashlib.sha256(data).hexdigest())
        old, stage["id"] = stage["id"], stage_id(stage)
        renamed[old] = stage["id"]
    tags = case.raw["tags"]
    tags.update({tag: renamed.get(target, target) for tag, target in tags.items()})


# -- judging -----------------------------------------------------------------------------------------------------------


class Wrong(Exception):
    """A history that gave another result than it should, or reached out of its folder."""


@dataclass(frozen=True)
class Truth:
    """What the sound history holds: weights by the ids of its stages; None is the base."""

    weights: dict[str | None, Tensors]
    new: Tensors


def judge(folder: Path, truth: Truth, rng: random.Random) -> str:
    """Try every way to read a history, and to commit. Returns "read" if anything was read, else "refused"."""
    try:
        history = History.open(folder)
    except RlforgetError:
        return "refused"
    outcome = "refused"
    history.log(), history.graph(), repr(history), history.tags
    stages: list[Stage | None] = [None, *history.stages]
    for stage in stages:
        try:
            history.checkout(stage, folder.parent / "out", dry_run=True)
            weights = history.weights(stage)
            history.blame_summary(stage)
            _check_is(history, stage, truth)
        except RlforgetError:
            continue
        outcome = "read"
        expected = history.base.fingerprint if stage is None else stage.after
        if weights_digest(weights) != expected:
            raise Wrong(f"{stage}: weights that are not those of the record")
    history.verify()
    try:
        committed = history.commit(truth.new, name=f"new-{rng.randrange(10)}", wait=0)
    except RlforgetError:
        pass
    else:
        _check_same(history, committed, truth.new)
    with suppress(RlforgetError):
        history.gc(wait=0)
    return outcome


def _check_is(history: History, stage: Stage | None, truth: Truth) -> None:
    """Check that a stage whose id is an old one holds the old weights; of the base, whose fingerprint it is."""
    key = None if stage is None else stage.id
    if key in truth.weights and (key is not None or history.base.fingerprint == weights_digest(history.weights(None))):
        known = truth.weights[key]
        if key is None and set(history.weights(None).names()) != set(known):
            return  # another base, whose fingerprint the index was made to have
        if key is not None:
            _check_same(history, stage, known)


def _check_same(history: History, stage: Stage | None, known: Tensors) -> None:
    weights = history.weights(stage)
    if set(weights.names()) != set(known) or not all(same_bits(weights.tensor(n), t) for n, t in known.items()):
        raise Wrong(f"{stage}: other weights than were committed")


class Watch:
    """Notes what this process opens or changes in a folder that is none of a history's business."""

    def __init__(self) -> None:
        self._on = False
        self._seen: list[str] = []
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._on and event in ("open", "os.remove", "os.rename", "os.truncate", "os.rmdir"):
            path = arguments[0]
            if isinstance(path, str) and "outside" in path.split("/"):
                self._seen.append(f"{event} {path}")

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Raise at the end of the block if it reached there."""
        self._on, self._seen = True, []
        try:
            yield
        finally:
            self._on = False
        if self._seen:
            raise Wrong(f"outside of the history: {self._seen[0]}")


# -- running -----------------------------------------------------------------------------------------------------------


def _states() -> list[Tensors]:
    flat = torch.arange(60.0)
    base: Tensors = {"model.layers.0.w": flat.reshape(6, 10).bfloat16(), "v": torch.arange(9, dtype=torch.int8)}
    a = {**base, "model.layers.0.w": (flat + (flat % 7 == 0)).reshape(6, 10).bfloat16()}
    b = {**a, "v": torch.arange(12, dtype=torch.int8)}
    c = {**a, "more": torch.ones(3).half()}
    return [base, a, b, c, {**base, "v": torch.zeros(9, dtype=torch.int8)}]


def prepared(root: Path) -> tuple[Path, Truth]:
    """Make the sound history base → a → b, c on a; and beside it something that is none of its business."""
    base, a, b, c, new = _states()
    history = History.init(root / "sound", write_checkpoint(root / "written", base, 0), copy=True)
    first = history.commit(a, name="a", domain="math", config={"steps": 60}, metrics={"math": 0.5})
    second = history.commit(b, name="b")
    third = history.commit(c, name="c", parent="a")
    history.tag("best", "b")
    (root / "outside").mkdir()
    shutil.copy(history.folder / second.delta.file, root / "outside" / "x.delta.safetensors")
    write_checkpoint(root / "elsewhere", base, 0)  # a base may be anywhere
    return history.folder, Truth({None: base, first.id: a, second.id: b, third.id: c}, new)


def fuzz(first: int, count: int, seed: int) -> Report:
    """Try histories number `first` to `first + count - 1`; each follows from its number and the seed alone."""
    torch.set_num_threads(1)
    report, watch = Report(), Watch()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as name:
        root = Path(name)
        sound, truth = prepared(root)
        folder = root / "history"
        shutil.copytree(sound, folder)
        assert judge(folder, truth, random.Random(0)) == "read"
        before, outside = _resident("VmRSS"), _listing(root / "outside")
        for number in range(first, first + count):
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(sound, folder)
            rng = random.Random(f"{seed}-{number}")
            names = _change(folder, rng)
            if number % 20 == 0:
                faulthandler.dump_traceback_later(20 * MOST_SECONDS, exit=True)
            start = time.perf_counter()
            try:
                with watch.watching():
                    outcome = judge(folder, truth, rng)
                if _listing(root / "outside") != outside:
                    raise Wrong("what is outside of the history changed")
            except Exception:
                outcome = "failed"
                report.failures.append(f"history {number}, {names}:\n{traceback.format_exc(limit=-6)[:3000]}")
            seconds = time.perf_counter() - start
            if seconds > MOST_SECONDS:
                outcome = "failed"
                report.failures.append(f"history {number}, {names}: {seconds:.1f} s")
            report.outcomes[outcome] += 1
            report.by_mutation.update((name, outcome) for name in names)
            report.slowest = max(report.slowest, seconds)
        faulthandler.cancel_dump_traceback_later()
        report.memory = _resident("VmHWM") - before
    if report.memory > MOST_MEMORY:
        report.failures.append(f"histories {first} to {first + count - 1}: {report.memory >> 20} MiB of memory")
    return report


def _change(folder: Path, rng: random.Random) -> list[str]:
    case = Case(folder, json.loads((folder / "history.json").read_text()))
    names = rng.choices(list(CHANGES), k=rng.choice((1, 1, 1, 2, 3)))
    for name in names:
        try:
            CHANGES[name](case, rng)
        except NOTHING_THERE:
            names = [*names, "nothing more"]
    if rng.random() < 0.5:
        with suppress(*NOTHING_THERE):
            fitted(case)
    path = folder / "history.json"
    path.write_bytes(case.text if case.text is not None else json.dumps(case.raw).encode())
    return names


def _listing(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*"))}


def run(count: int, seed: int, processes: int) -> Report:
    """Share the histories among processes."""
    portion = -(-count // processes)
    report = Report()
    with ProcessPoolExecutor(processes) as pool:
        starts = range(0, count, portion)
        for found in pool.map(fuzz, starts, [min(portion, count - first) for first in starts], [seed] * len(starts)):
            report.add(found)
    return report


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture.fuzz_history")
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args(arguments)
    start = time.perf_counter()
    report = run(options.count, options.seed, options.processes)
    for name in CHANGES:
        refused, read = (report.by_mutation[name, outcome] for outcome in ("refused", "read"))
        print(f"{name:20} {refused:8} refused {read:8} read")
    print(
        f"{sum(report.outcomes.values())} histories in {time.perf_counter() - start:.0f} s: "
        f"{report.outcomes['refused']} refused by name, {report.outcomes['read']} read right, "
        f"{report.outcomes['failed']} failed; slowest {report.slowest:.2f} s; "
        f"memory grew by {report.memory >> 20} MiB at most"
    )
    for failure in report.failures[:20]:
        print(failure)
    return 1 if report.failures else 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_thousand_damaged_histories() -> None:
    report = run(20_000, 0, 2)
    assert not report.failures, "\n".join(report.failures[:5])
    assert sum(report.outcomes.values()) == 20_000
    assert report.outcomes["read"] > 1000  # changes that change nothing of note


if __name__ == "__main__":
    sys.exit(main())
