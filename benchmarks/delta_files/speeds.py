"""Sizes and speeds of one pair of checkpoints."""

from __future__ import annotations

import gc
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import zstandard

from benchmarks.delta_files.floor import floor
from benchmarks.delta_files.ours import Live, decode, pack, unpack
from benchmarks.delta_files.read_ceiling import read_all
from benchmarks.delta_files.same_bits import same_bits, tensors_of

SLOW = 6.0  # seconds after which a step is not taken again


def measure(pair: Path, fast: Path, rounds: int) -> dict[str, Any]:
    """Measure `pair/before` and `pair/after`, each step in turns with bare reads and copies of the same files.

    Args:
        pair: On the disk that is measured.
        fast: A folder on a filesystem in memory.
        rounds: How often, unless it takes long; the best time of each counts.

    Returns:
        `model_bytes` of one checkpoint; `floor`; `bytes`: sizes of "delta", "self-contained" and "zstd of after";
        `seconds` of each step; `threads`.
    """
    before, after, path = pair / "before", pair / "after", fast / "pair.delta.safetensors"
    pack(before, after, path)  # compiles, or reads the compiled code from disk
    live = Live(before, path)
    steps: dict[str, Callable[[], object]] = {
        "read both": lambda: read_all([before, after], torch.get_num_threads()),
        "diff to file": lambda: pack(before, after, path),
        "read before": lambda: read_all([before], torch.get_num_threads()),
        "decode": lambda: decode(before, path),
        "decode backward": lambda: decode(after, path, backward=True),
        "apply live": live,
        "copy to tmpfs": lambda: _copy(before, fast / "copied"),
        "apply to tmpfs": lambda: unpack(before, path, fast / "applied"),
        "copy to disk": lambda: _copy(before, pair / "copied"),
        "apply to disk": lambda: unpack(before, path, pair / "applied"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            if sum(seconds[name]) < SLOW:
                gc.collect()
                seconds[name].append(_timed(step))
    assert live.holds(before, after)
    assert all(same_bits(tensors_of(place / "applied"), tensors_of(after)) for place in (fast, pair))
    found = {
        "model_bytes": sum(file.stat().st_size for file in before.glob("*.safetensors")),
        "floor": asdict(floor(before, after)),
        "bytes": _sizes(before, after, path),
        "seconds": {name: min(taken) for name, taken in seconds.items()},
        "threads": torch.get_num_threads(),
    }
    for place in (fast / "copied", fast / "applied", pair / "copied", pair / "applied"):
        shutil.rmtree(place)
    path.unlink()
    return found


def _sizes(before: Path, after: Path, path: Path) -> dict[str, int]:
    plain = path.stat().st_size
    pack(before, after, path, self_contained=True)
    return {"delta": plain, "self-contained": path.stat().st_size, "zstd of after": _zstd_size(after)}


def _zstd_size(folder: Path) -> int:
    compressor = zstandard.ZstdCompressor(level=3, threads=-1)
    return sum(len(compressor.compress(file.read_bytes())) for file in folder.glob("*.safetensors"))


def _copy(source: Path, target: Path) -> None:
    """Copy a folder, and sync it, as what is written by ours is."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    for file in target.iterdir():
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def _timed(step: Callable[[], object]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start
