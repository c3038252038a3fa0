"""Delta files that are damaged with knowledge of their structure: each gives a named error or a correct result.

    python -m tests.torture.fuzz_delta_files --count 100000 --seed 0

A sound file is taken apart, one to three things in it are changed, and it is put together again with lengths and
checksums that fit, so that the change reaches the code behind them. Then it is read beside its base, and applied to a
copy of that. With NUMBA_BOUNDSCHECK=1 in the environment, and NUMBA_CACHE_DIR at an empty folder, every access of a
compiled kernel is checked too. Told apart:

    refused    an error of rlforget.errors, and the weights are as they were
    read       the result is what the file says: its fingerprints fit, and leading forward and back gives the base again
    failed     anything else: another exception, another result, changed weights, over 5 s; or a process that died, or
               whose memory grew by more than 512 MiB
"""

from __future__ import annotations

import argparse
import copy
import faulthandler
import functools
import json
import random
import re
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import zstandard

from rlforget.delta import Delta, DeltaFile, FileDelta, apply
from rlforget.delta.streaming import write_diff
from rlforget.errors import RlforgetError
from rlforget.weights import open_weights
from rlforget_kernels.common.bits import as_bits
from tests.delta.file.forging import Parts, compressed, put_together, take_apart
from tests.delta.random_weights import Tensors
from tests.kernels.strategies import DTYPES, changed_copy, random_tensor

MOST_SECONDS = 5.0
MOST_MEMORY = 512 << 20
_NUMBERS = (
    0,
    1,
    2,
    14,
    15,
    16,
    254,
    255,
    256,
    2**15,
    2**16,
    2**22 - 1,
    2**22,
    2**22 + 1,
    2**31,
    2**32,
    2**62,
    2**63 - 1,
)
_ENCODING_BYTES = 5

Mutation = Callable[[Parts, random.Random], None]


# -- sound files -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seed:
    """A sound file, and the weights before."""

    parts: Parts
    content: bytes
    base: Tensors


def seeds() -> list[Seed]:
    """Files of every encoding, dtype and part."""
    found = []
    for number, density in enumerate([0.02, 0.3, 0.9]):
        before = {str(dtype)[6:]: random_tensor(dtype, (61, 5), number) for dtype in DTYPES}
        after = {name: changed_copy(tensor, density, number) for name, tensor in before.items()}
        for self_contained in (False, True):
            found.append(_seed(before, after, self_contained=self_contained))
    flat = torch.Generator().manual_seed(0)
    before = {"w": torch.randn(20_000, generator=flat).bfloat16(), "v": torch.randn(300, generator=flat)}
    after = {"w": torch.zeros(20_000).bfloat16(), "v": before["v"] + 1e-6}
    for self_contained in (False, True):
        found.append(_seed(before, after, self_contained=self_contained))
    before = {"kept": torch.zeros(9), "gone": torch.ones(4), "grown": torch.ones(2, 2).half(), "old": torch.arange(7)}
    after = {
        "kept": torch.ones(9),
        "come": torch.ones(3) > 0,
        "grown": torch.ones(3, 2).half(),
        "new": torch.arange(7) + 1,
    }
    for self_contained in (False, True):
        found.append(_seed(before, after, self_contained=self_contained, rename={"old": "new"}, files=True))
    return found


def _seed(
    before: Tensors, after: Tensors, *, self_contained: bool, rename: dict[str, str] | None = None, files: bool = False
) -> Seed:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x"
        write_diff(before, after, path, self_contained=self_contained, rename=rename, metadata={"domain": "math"})
        if files:
            delta = Delta.load(path, before)
            delta.files["config.json"] = FileDelta("config.json", b'{"a": 1}', b'{"a": 2}')
            delta.files["vocab.txt"] = FileDelta("vocab.txt", None, b"x" * 100)
            delta.aliases["tied"] = "kept"
            delta.save(path, self_contained=self_contained, force=True)
        content = path.read_bytes()
    return Seed(take_apart(content), content, before)


# -- mutations -------------------------------------------------------------------------------------------------------


def _number(value: int, rng: random.Random) -> int:
    choice = rng.random()
    if choice < 0.4:
        return value + rng.choice((-2, -1, 1, 2))
    if choice < 0.6:
        return rng.choice(_NUMBERS) * rng.choice((1, 1, 1, -1))
    if choice < 0.8:
        return value ^ (1 << rng.randrange(63))
    return rng.getrandbits(rng.randrange(1, 63))


def _bytes(data: bytes, rng: random.Random) -> bytes:
    """Change, cut, drop, double or insert bytes."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 4))):
        place = rng.randrange(len(out) + 1) if rng.random() < 0.7 else rng.randrange(min(len(out), 16) + 1)
        kind = rng.randrange(6)
        if kind == 0 and place < len(out):
            out[place] ^= 1 << rng.randrange(8)
        elif kind == 1 and place < len(out):
            out[place] = rng.choice((0, 1, 15, 127, 128, 240, 254, 255))
        elif kind == 2:
            del out[place : place + rng.choice((1, 2, 8, len(out)))]
        elif kind == 3:
            out[place:place] = rng.choice((b"\0", b"\xff", b"\xff" * 16, bytes(rng.randrange(64))))
        elif kind == 4:
            run = rng.randrange(1, 40)
            out[place : place + run] = rng.choice((b"\xff", b"\0", b"\xf0")) * len(out[place : place + run])
        else:
            out[place : place + 8] = rng.randbytes(len(out[place : place + 8]))
    return bytes(out)


def _header(parts: Parts, rng: random.Random) -> None:
    key = rng.choice(("frames", "table", "__metadata__", "more"))
    offset = rng.choice(_NUMBERS)
    array: Any = {"dtype": rng.choice(("U8", "I8", "F64")), "shape": [offset], "data_offsets": [0, offset]}
    parts.header[key] = rng.choice((array, 3, None, [], "x", {}, {"dtype": "U8"}))


def _strings(parts: Parts, rng: random.Random) -> None:
    key = rng.choice(("format", "version", "checksum", "more"))
    parts.strings[key] = rng.choice(("", "2", "1", "rlforget.delta", None, 3, ["x"]))


def _row(column: str) -> Mutation:
    def mutate(parts: Parts, rng: random.Random) -> None:
        if parts.rows:
            row = rng.choice(parts.rows)
            row[column] = _number(row[column], rng)
            parts.forced.add(column)

    return mutate


def _encoding(parts: Parts, rng: random.Random) -> None:
    if parts.rows:
        row, place = rng.choice(parts.rows), 8 * rng.randrange(_ENCODING_BYTES)
        row["encoding"] = row["encoding"] & ~(255 << place) | rng.choice((0, 1, 2, 3, 4, 8, 16, 56, 57, 255)) << place


def _rows(parts: Parts, rng: random.Random) -> None:
    if not parts.rows:
        return
    at = rng.randrange(len(parts.rows))
    kind = rng.randrange(4)
    if kind == 0:
        del parts.rows[at], parts.payloads[at]
    elif kind == 1:
        parts.rows.insert(at, dict(parts.rows[at]))
        parts.payloads.insert(at, parts.payloads[at])
    elif kind == 2:
        rng.shuffle(parts.rows)
    else:
        rng.shuffle(parts.payloads)


def _payload(parts: Parts, rng: random.Random) -> None:
    if parts.payloads:
        at = rng.randrange(len(parts.payloads))
        parts.payloads[at] = _bytes(parts.payloads[at], rng)


def _frame(parts: Parts, rng: random.Random) -> None:
    """The compressed bytes themselves."""
    if parts.payloads:
        at = rng.randrange(len(parts.payloads))
        parts.raw[at] = _bytes(compressed(parts.payloads[at]), rng)


def _bomb(parts: Parts, rng: random.Random) -> None:
    """A frame that unpacks to more, or to more than it says, or does not say."""
    if parts.payloads:
        at = rng.randrange(len(parts.payloads))
        size = rng.choice((1 << 16, 1 << 24, 1 << 30)) if rng.random() < 0.2 else 1 << rng.randrange(12, 18)
        parts.raw[at] = _compressed_run(size, rng.choice((0, 255)), rng.random() < 0.7)


@functools.cache
def _compressed_run(size: int, value: int, tells_size: bool) -> bytes:
    """Compress a run of one byte, without ever holding it."""
    compressor = zstandard.ZstdCompressor(level=1).compressobj(size=size if tells_size else -1)
    chunk = bytes([value]) * min(size, 1 << 16)
    return b"".join([*(compressor.compress(chunk) for _ in range(size // len(chunk))), compressor.flush()])


def _shape(parts: Parts, rng: random.Random) -> None:
    rows = [*parts.text["tensors"], *([["", *side] for row in parts.text["whole"] for side in row[1:] if side])]
    if rows:
        shape = rng.choice(rows)[2]
        if shape and rng.random() < 0.7:
            at = rng.randrange(len(shape))
            shape[at] = rng.choice((_number(shape[at], rng), 1.5, None, "3", True, [2]))
        else:
            shape.insert(rng.randrange(len(shape) + 1), rng.choice(_NUMBERS))


def _dtype(parts: Parts, rng: random.Random) -> None:
    dtype: Any = rng.choice([*(str(dtype)[6:] for dtype in DTYPES), "float4", "complex64", 3, None, []])
    side = rng.choice([row for row in parts.text["whole"] for row in row[1:] if row] or [None])
    if side is not None and rng.random() < 0.5:
        side[0] = dtype
    elif parts.text["tensors"]:
        rng.choice(parts.text["tensors"])[1] = dtype


def _name(parts: Parts, rng: random.Random) -> None:
    rows = [*parts.text["tensors"], *parts.text["whole"], *parts.text["files"]]
    if rows:
        names = [row[0] for row in rows]
        odd = [
            "",
            "..",
            "../../etc/passwd",
            "a/b",
            "a\\b",
            "a\0b",
            "/etc/passwd",
            "model.safetensors",
            "\ud800",
            3,
            None,
        ]
        rng.choice(rows)[0] = rng.choice([*names, *odd])


def _whole_sides(parts: Parts, rng: random.Random) -> None:
    rows = [*parts.text["whole"], *parts.text["files"]]
    if rows:
        row = rng.choice(rows)
        row[rng.choice((1, 2))] = rng.choice(
            (None, 0, 1, -1, 100, 2**62, 2**70, ["bool", [4]], ["float64", [2**40]], [], 1.0)
        )


def _mappings(parts: Parts, rng: random.Random) -> None:
    names = [row[0] for row in parts.text["tensors"]] + ["x", "tied"]
    key = rng.choice(("aliases", "renamed", "metadata"))
    value: Any = rng.choice([{rng.choice(names): rng.choice(names)}, {"x": 3}, {"x": None}, [], None, "x", {}])
    parts.text[key] = value


def _fields(parts: Parts, rng: random.Random) -> None:
    key = rng.choice([*parts.text, "more"])
    parts.text[key] = rng.choice((None, 3, [], {}, "x", True, False, [[]], [[1, 2, 3]], [["x", "bool", [2]]]))


def _text(parts: Parts, rng: random.Random) -> None:
    parts.text_bytes = _bytes(json.dumps(parts.text).encode(), rng)


def _counts(parts: Parts, rng: random.Random) -> None:
    length = len(json.dumps(parts.text))
    parts.counts = (
        (_number(length, rng), len(parts.rows)) if rng.random() < 0.5 else (length, _number(len(parts.rows), rng))
    )


def _list(values: list[int], rng: random.Random) -> None:
    if values and rng.random() < 0.8:
        at = rng.randrange(len(values))
        values[at] = _number(values[at], rng)
    elif values and rng.random() < 0.5:
        values.pop()
    else:
        values.append(rng.choice(_NUMBERS))


def _changed(parts: Parts, rng: random.Random) -> None:
    _list(parts.changed, rng)


def _lanes(parts: Parts, rng: random.Random) -> None:
    _list(parts.lanes, rng)


def _table(parts: Parts, rng: random.Random) -> None:
    kind = rng.randrange(3)
    if kind == 0:
        parts.compressed_table = rng.randbytes(rng.randrange(200))
    elif kind == 1:
        parts.compressed_table = _compressed_run(1 << rng.choice((10, 20, 26, 30)), 0, rng.random() < 0.7)
    else:
        parts.table_bytes = rng.randbytes(rng.randrange(400))


MUTATIONS: dict[str, Mutation] = {
    "header": _header,
    "strings": _strings,
    "frame start": _row("start"),
    "frame coordinates": _row("coordinates"),
    "frame changed": _row("changed"),
    "frame encoding": _row("encoding"),
    "frame length": _row("length"),
    "frame checksum": _row("checksum"),
    "frame coding": _encoding,
    "frame order": _rows,
    "payload": _payload,
    "payload again": _payload,
    "compressed frame": _frame,
    "bomb": _bomb,
    "shape": _shape,
    "dtype": _dtype,
    "name": _name,
    "sides": _whole_sides,
    "mappings": _mappings,
    "fields": _fields,
    "text": _text,
    "counts": _counts,
    "changed": _changed,
    "fingerprints": _lanes,
    "table": _table,
}


def mutated(seed: Seed, rng: random.Random) -> tuple[bytes, list[str]]:
    """Return a changed file and what was changed; one in ten in its plain bytes, which checksums should find."""
    if rng.random() < 0.1:
        return _bytes(seed.content, rng), ["plain bytes"]
    parts = copy.deepcopy(seed.parts)
    names = rng.choices(list(MUTATIONS), k=rng.choice((1, 1, 1, 2, 3)))
    for name in names:
        try:
            MUTATIONS[name](parts, rng)
        except (AttributeError, TypeError, KeyError, IndexError):  # a change before it left nothing to change here
            names = [*names, "nothing more"]
    return put_together(parts), names


# -- judging ---------------------------------------------------------------------------------------------------------


class Wrong(Exception):
    """A file that was read with a wrong result, or that changed weights and was then refused."""


def judge(path: Path, base: Tensors, pristine: Tensors) -> str:
    """Read and apply a file. Returns "read" or "refused"."""
    try:
        file = DeltaFile(path)
    except RlforgetError:
        return "refused"
    try:
        delta = file.read(open_weights(base))
    except RlforgetError:
        outcome = "refused"
    else:
        outcome = "read"
        _check_result(file, delta, base)
    target = {name: tensor.clone() for name, tensor in base.items()}
    try:
        apply(target, file)
    except RlforgetError:
        if not _same(target, pristine):
            raise Wrong("refused, but the target changed") from None
    if not _same(base, pristine):
        raise Wrong("the base changed")
    return outcome


def _check_result(file: DeltaFile, delta: Delta, base: Tensors) -> None:
    for name, tensor in delta.items():
        if not tensor.changed:
            continue
        held = base.get(name)
        if held is None or (held.dtype, held.shape) != (tensor.dtype, tensor.shape):
            continue  # a self-contained file may be about other weights
        bits = as_bits(held).clone()
        ends = {False: bits.index_select(0, tensor.indices.long()), True: tensor.before_bits}
        if torch.equal(ends[False], ends[True]):
            patch = file.patch(name)
            patch.forward_(bits)
            if not torch.equal(bits.index_select(0, tensor.indices.long()), tensor.after_bits):
                raise Wrong(f"{name!r}: a patch that leads elsewhere")
            if patch.two_way:
                patch.backward_(bits)
                if not torch.equal(bits, as_bits(held)):
                    raise Wrong(f"{name!r}: a patch that does not lead back")


def _same(some: Tensors, others: Tensors) -> bool:
    return some.keys() == others.keys() and all(
        torch.equal(as_bits(some[name]), as_bits(others[name])) for name in some
    )


# -- running ---------------------------------------------------------------------------------------------------------


@dataclass
class Report:
    """What became of the files."""

    outcomes: Counter[str] = field(default_factory=Counter)
    by_mutation: Counter[tuple[str, str]] = field(default_factory=Counter)
    slowest: float = 0.0
    memory: int = 0
    failures: list[str] = field(default_factory=list)

    def add(self, other: Report) -> None:
        self.outcomes += other.outcomes
        self.by_mutation += other.by_mutation
        self.slowest, self.memory = max(self.slowest, other.slowest), max(self.memory, other.memory)
        self.failures += other.failures


def fuzz(first: int, count: int, seed: int) -> Report:
    """Try files number `first` to `first + count - 1`; each follows from its number and the seed alone."""
    torch.set_num_threads(1)
    sound = seeds()
    pristine = [{name: tensor.clone() for name, tensor in one.base.items()} for one in sound]
    report = Report()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        path = Path(folder) / "x.delta.safetensors"
        for one, base in zip(sound, pristine, strict=True):
            path.write_bytes(put_together(one.parts))
            assert judge(path, one.base, base) == "read"
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
        before = _resident("VmRSS")
        for number in range(first, first + count):
            rng = random.Random(f"{seed}-{number}")
            at = rng.randrange(len(sound))
            content, names = mutated(sound[at], rng)
            path.write_bytes(content)
            if number % 20 == 0:  # it costs as much as a file
                faulthandler.dump_traceback_later(20 * MOST_SECONDS, exit=True)
            start = time.perf_counter()
            try:
                outcome = judge(path, sound[at].base, pristine[at])
            except Exception:
                outcome = "failed"
                report.failures.append(f"file {number}, {names}:\n{traceback.format_exc(limit=-4)}")
            seconds = time.perf_counter() - start
            if seconds > MOST_SECONDS:
                outcome = "failed"
                report.failures.append(f"file {number}, {names}: {seconds:.1f} s")
            report.outcomes[outcome] += 1
            report.by_mutation.update((name, outcome) for name in names)
            report.slowest = max(report.slowest, seconds)
        faulthandler.cancel_dump_traceback_later()
        report.memory = _resident("VmHWM") - before
    if report.memory > MOST_MEMORY:
        report.failures.append(f"files {first} to {first + count - 1}: {report.memory >> 20} MiB of memory")
    return report


def _resident(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return 1024 * int(found.group(1)) if found else 0


def run(count: int, seed: int, processes: int) -> Report:
    """Share the files among processes, in portions whose crash is then told."""
    portion = max(1, min(2500, -(-count // processes)))
    report = Report()
    with ProcessPoolExecutor(processes) as pool:
        starts = range(0, count, portion)
        jobs = {first: pool.submit(fuzz, first, min(portion, count - first), seed) for first in starts}
        for first, job in jobs.items():
            try:
                report.add(job.result())
            except BrokenProcessPool:
                report.failures.append(f"a process died on files from {first} on, or beside them")
    return report


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture.fuzz_delta_files")
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args(arguments)
    start = time.perf_counter()
    report = run(options.count, options.seed, options.processes)
    for name in ["plain bytes", *MUTATIONS]:
        refused, read = (report.by_mutation[name, outcome] for outcome in ("refused", "read"))
        print(f"{name:20} {refused:8} refused {read:8} read")
    print(
        f"{sum(report.outcomes.values())} files in {time.perf_counter() - start:.0f} s: "
        f"{report.outcomes['refused']} refused by name, {report.outcomes['read']} read right, "
        f"{report.outcomes['failed']} failed; slowest {report.slowest:.2f} s; "
        f"memory grew by {report.memory >> 20} MiB at most (zstandard {zstandard.__version__})"
    )
    for failure in report.failures[:20]:
        print(failure)
    return 1 if report.failures else 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_hundred_thousand_damaged_delta_files() -> None:
    report = run(100_000, 0, 2)
    assert not report.failures, "\n".join(report.failures[:5])
    assert sum(report.outcomes.values()) == 100_000
    assert report.outcomes["read"] > 1000  # changes that change nothing of note


if __name__ == "__main__":
    sys.exit(main())
