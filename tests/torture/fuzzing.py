"""Trying damaged things by the thousand: each must be refused by name, or read right.

Anything else is a failure: another exception, another result, changed weights, over 5 s; a process that died, or whose
memory grew by more than 512 MiB. Every try follows from its number and the seed alone.
"""

from __future__ import annotations

import faulthandler
import random
import re
import tempfile
import time
import traceback
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch

MOST_SECONDS = 5.0
MOST_MEMORY = 512 << 20
_PORTION = 2000


class Wrong(Exception):
    """A damaged thing that gave another result than it should, or that changed what it should not."""


class Target(ABC):
    """What is damaged, in a folder of its own. It holds when it is made that the sound thing is read.

    Attributes:
        changes: The names of all changes.
    """

    changes: ClassVar[tuple[str, ...]]

    @abstractmethod
    def __init__(self, folder: Path) -> None: ...

    @abstractmethod
    def damage(self, rng: random.Random) -> list[str]:
        """Damage the sound thing anew; return the names of what was changed."""

    @abstractmethod
    def judge(self, rng: random.Random) -> str:
        """Read what was damaged last. Returns "read" or "refused".

        Raises:
            Exception: It was neither read right nor refused by name.
        """


@dataclass
class Report:
    """What became of the tries.

    Attributes:
        outcomes: How many were `refused`, `read` or `failed`.
        by_change: Likewise, by what was changed.
        slowest: Seconds that a try took at most.
        memory: Bytes by which a process grew at most.
        failures: What went wrong.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    by_change: Counter[tuple[str, str]] = field(default_factory=Counter)
    slowest: float = 0.0
    memory: int = 0
    failures: list[str] = field(default_factory=list)

    def add(self, other: Report) -> None:
        """Add another one."""
        self.outcomes += other.outcomes
        self.by_change += other.by_change
        self.slowest, self.memory = max(self.slowest, other.slowest), max(self.memory, other.memory)
        self.failures += other.failures


def fuzz(kind: type[Target], first: int, count: int, seed: int, end: float) -> Report:
    """Make the tries number `first` to `first + count - 1`, while the clock is before `end`."""
    torch.set_num_threads(1)
    report = Report()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        target = kind(Path(folder))
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
        before = _resident("VmRSS")
        for number in range(first, first + count):
            if time.monotonic() > end:
                break
            if number % 20 == 0:  # it costs as much as a try
                faulthandler.dump_traceback_later(20 * MOST_SECONDS, exit=True)
            _try(target, number, random.Random(f"{seed}-{number}"), report)
        faulthandler.cancel_dump_traceback_later()
        report.memory = _resident("VmHWM") - before
    if report.memory > MOST_MEMORY:
        report.failures.append(f"{first} to {first + count - 1}: {report.memory >> 20} MiB of memory")
    return report


def _try(target: Target, number: int, rng: random.Random, report: Report) -> None:
    names: list[str] = []
    start = time.perf_counter()
    try:
        names = target.damage(rng)
        start = time.perf_counter()
        outcome = target.judge(rng)
    except Exception:
        outcome = "failed"
        report.failures.append(f"{number}, {names}:\n{traceback.format_exc(limit=-6)[:3000]}")
    seconds = time.perf_counter() - start
    if seconds > MOST_SECONDS:
        outcome = "failed"
        report.failures.append(f"{number}, {names}: {seconds:.1f} s")
    report.outcomes[outcome] += 1
    report.by_change.update((name, outcome) for name in names)
    report.slowest = max(report.slowest, seconds)


def _resident(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return 1024 * int(found.group(1)) if found else 0


def run(
    counts: Mapping[type[Target], int], *, seed: int = 0, processes: int = 2, seconds: float = 1e9
) -> dict[type[Target], Report]:
    """Share tries among processes, in portions whose crash is then told. Time that runs out ends all kinds alike.

    Args:
        counts: How many tries to make of each kind.
        seed: Decides all of them.
        processes: How many.
        seconds: No try is begun later.
    """
    end = time.monotonic() + seconds
    reports = {kind: Report() for kind in counts}
    portions = [(kind, first) for kind, count in counts.items() for first in range(0, count, _PORTION)]
    portions.sort(key=lambda portion: portion[1] / counts[portion[0]])
    with ProcessPoolExecutor(processes) as pool:
        jobs = [
            (kind, first, pool.submit(fuzz, kind, first, min(_PORTION, counts[kind] - first), seed, end))
            for kind, first in portions
        ]
        for kind, first, job in jobs:
            try:
                reports[kind].add(job.result())
            except BrokenProcessPool:
                reports[kind].failures.append(f"a process died from {first} on, or beside")
    return reports
