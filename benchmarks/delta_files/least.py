"""The least time that commands on large checkpoints could take: reading once, their operators, writing once.

Each part by itself, on all threads, on tensors in memory where it reads none: what a command takes beyond their sum is
its own. Nothing overlaps here, so a command that does all three at a time may take less.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.delta_files.read_ceiling import PIECE as BYTES
from benchmarks.delta_files.read_ceiling import read_all
from rlforget.delta.file import DeltaFile
from rlforget.delta.file.frames import Changes, encode
from rlforget.delta.file.run import unsigned
from rlforget.delta.scan import PIECE
from rlforget.weights import open_weights
from rlforget.weights.raw_io import begin_writeback
from rlforget_kernels.conflict_score import conflict_score
from rlforget_kernels.delta_stats import foreach_delta_stats
from rlforget_kernels.fingerprint import fingerprint, fingerprint_after_patch
from rlforget_kernels.select_top import select_top
from rlforget_kernels.sparse_delta import sparse_delta

HELD = 25 * PIECE
"""Coordinates of each side in memory; what takes them is done as often as the checkpoint has so many."""

PARTS = {
    "diff for statistics alone": ("read both", "compare", "statistics"),
    "diff": ("read both", "compare and fingerprint", "statistics", "encode"),
    "apply": ("read one", "decode", "fingerprints", "write"),
    "revert": ("read one", "decode", "fingerprints", "write"),
    "rollback of 2% of all": ("read one", "fingerprints", "decode", "score and select", "write"),
    "init": ("read one", "fingerprints"),
    "commit": ("read one", "decode", "compare and fingerprint", "statistics", "encode"),
    "verify of the history": ("read one", "decode", "fingerprints"),
    "checkout": ("read one", "decode", "fingerprints", "write"),
}
"""What each command cannot do without. `commit` compares the state with the stage before, whatever file it is given:
of a delta both come from that stage, which is read once. Statistics alone ask for no fingerprints.

`verify` of a checkpoint reads headers alone, so all it takes is its start.
"""


def measure(before: Path, after: Path, delta: Path, scratch: Path, rounds: int = 3) -> dict[str, float]:
    """Return the seconds of each part, the best of a few rounds, for the whole of a checkpoint.

    Args:
        before: A checkpoint whose first tensor has `HELD` coordinates, at least, of the one dtype there is.
        after: Likewise.
        delta: What changed between them.
        scratch: A file to write, on the disk that commands write to.
        rounds: How often.
    """
    size = sum(file.stat().st_size for file in before.glob("*.safetensors"))
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads) as pool:
        held = _Held(before, after, delta, pool)
        whole: dict[str, Callable[[], object]] = {
            "read one": lambda: read_all([before], threads),
            "read both": lambda: read_all([before, after], threads),
            "write": lambda: _write(scratch, size, pool),
        }
        seconds = {name: min(_timed(step) for _ in range(rounds)) for name, step in whole.items()}
        for name, step in held.steps().items():
            seconds[name] = held.times * min(_timed(step) for _ in range(rounds))
    scratch.unlink()
    return seconds


class _Held:
    """Ranges of both sides in memory, and what commands do with them."""

    def __init__(self, before: Path, after: Path, delta: Path, pool: ThreadPoolExecutor) -> None:
        sides = [open_weights(folder) for folder in (before, after)]
        name = sides[0].names()[0]
        self._dtype = sides[0].meta(name).dtype
        self._pool, self._file = pool, DeltaFile(delta)
        self._ranges = [(name, start, start + PIECE) for start in range(0, HELD, PIECE)]
        self._before, self._after = ([side.bits(*one).clone() for one in self._ranges] for side in sides)
        self._changed = [sparse_delta(*pair) for pair in zip(self._before, self._after, strict=True)]
        self._stepped = [bits.clone() for bits in self._before]
        self._backward = False
        self.times = sum(sides[0].meta(name).numel for name in sides[0].names()) / HELD

    def steps(self) -> dict[str, Callable[[], object]]:
        return {
            "compare": lambda: self._each(sparse_delta, self._before, self._after),
            "compare and fingerprint": self._compare,
            "statistics": self._statistics,
            "encode": self._encode,
            "decode": self._decode,
            "fingerprints": lambda: self._each(fingerprint, self._before),
            "score and select": self._select,
        }

    def _each(self, work: Callable[..., object], *lists: Iterable[Any]) -> None:
        list(self._pool.map(work, *lists))

    def _compare(self) -> None:
        def one(before: Tensor, after: Tensor) -> None:
            lanes = fingerprint(before)
            fingerprint_after_patch(lanes, *sparse_delta(before, after))

        self._each(one, self._before, self._after)

    def _statistics(self) -> None:
        foreach_delta_stats(*self._values())

    def _values(self) -> tuple[list[Tensor], list[Tensor]]:
        olds, news = ([changed[side].view(self._dtype) for changed in self._changed] for side in (1, 2))
        return olds, news

    def _encode(self) -> None:
        def one(indices: Tensor, old: Tensor, new: Tensor) -> None:
            positions = indices.numpy().astype(np.uint32)
            changes = Changes(PIECE, True, positions, unsigned(old), unsigned(new), None)
            encode(changes, self_contained=False, thorough=False)

        self._each(one, *zip(*self._changed, strict=True))

    def _decode(self) -> None:
        """Decode and step, to and fro by turns."""

        def one(place: tuple[str, int, int], bits: Tensor) -> None:
            patch = self._file.patch(*place)
            (patch.backward_ if self._backward else patch.forward_)(bits)

        self._each(one, self._ranges, self._stepped)
        self._backward = not self._backward

    def _select(self) -> None:
        pairs = zip(*self._values(), strict=True)
        scores = [conflict_score(new.float() - old.float(), "magnitude")[0] for old, new in pairs]
        select_top(scores, sum(one.numel() for one in scores) // 2)


def _write(path: Path, size: int, pool: ThreadPoolExecutor) -> None:
    """Write a file of that size, by all threads, and sync it; the disk begins at once, as in `raw_io`."""
    buffer = bytes(BYTES)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        os.ftruncate(descriptor, size)
        starts = range(0, size, BYTES)

        def one(start: int) -> None:
            begin_writeback(descriptor, start, os.pwrite(descriptor, buffer[: size - start], start))

        list(pool.map(one, starts))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _timed(step: Callable[[], object]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start
