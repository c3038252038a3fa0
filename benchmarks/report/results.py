"""Results as the page reads them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path("benchmarks/results")
OWN = ("ours", "ceiling")
PARTS = ("operators", "model")
DIFF = "rf.diff"


@dataclass(frozen=True)
class Record:
    """One case of one operator; see `benchmarks.harness.Measurement.record`."""

    raw: dict[str, Any]

    @property
    def operator(self) -> str:
        return str(self.raw["operator"])

    @property
    def case(self) -> str:
        return str(self.raw["case"])

    @property
    def seconds(self) -> dict[str, float]:
        found: dict[str, float] = self.raw["seconds"]
        return found

    @property
    def speed(self) -> float:
        """GB/s of the fewest bytes that the task moves."""
        return float(self.raw["moved"] / self.seconds["ours"] / 1e9)

    @property
    def ceiling_moved(self) -> int:
        """Bytes that the ceiling's pass moves: as many as the task, or those that `harness.Case.least` counts."""
        return int(self.raw.get("ceiling_moved", self.raw["moved"]))

    @property
    def ceiling_speed(self) -> float:
        """GB/s of the ceiling's pass."""
        return float(self.ceiling_moved / self.seconds["ceiling"] / 1e9)

    @property
    def flops(self) -> int:
        """Floating-point operations, 0 where they are not counted."""
        return int(self.raw["flops"])

    @property
    def float_rate(self) -> float:
        """GFLOP/s of ours."""
        return self.flops / self.seconds["ours"] / 1e9

    @property
    def share(self) -> float:
        """Ours as a share of the ceiling."""
        return self.seconds["ceiling"] / self.seconds["ours"]

    @property
    def peers(self) -> list[str]:
        """Those that were timed."""
        return [name for name in self.seconds if name not in OWN]

    def times(self, peer: str) -> float | None:
        """How many times as long a peer takes; None where it was not timed."""
        return self.seconds[peer] / self.seconds["ours"] if peer in self.seconds else None

    @property
    def error(self) -> float | None:
        """What ours is off from float64, as a share of what the case's module says; None where it was not asked."""
        found: float | None = self.raw.get("error")
        return found

    def extra(self, name: str = "ours") -> int | None:
        """Peak memory beyond inputs and outputs, in bytes; None where it is not known."""
        found: int | None = self.raw["extra_bytes"].get(name)
        return found


@dataclass(frozen=True)
class Results:
    """One file: what was measured on one device on one day.

    Attributes:
        source: The file.
        environment: The machine, the versions and the date.
        records: The operators' cases.
        model: The steps on a whole model, where measured; on a GPU.
        sections: Of the suite for a GPU: the seconds of each, and the cases that were left out or failed.
        diff: The parts of one whole `rf.diff`, where measured.
        calls: Seconds of the first and second call, where measured.
    """

    source: Path
    environment: dict[str, Any]
    records: list[Record]
    model: list[Record]
    sections: dict[str, Any]
    diff: dict[str, Any] | None
    calls: dict[str, float] | None

    @property
    def device(self) -> str:
        """`cpu` or `cuda`."""
        return str(self.environment["device"])

    @property
    def name(self) -> str:
        """The device as people call it."""
        gpu, cpu, threads = (self.environment.get(key) for key in ("gpu", "cpu", "threads"))
        return str(gpu) if gpu else f"{cpu}, {threads} threads"

    @property
    def float_speed(self) -> float:
        """The most float32 operations a second that the machine did in that run; 0 where it was not measured."""
        return float(self.environment.get("float_speed", 0.0))

    @property
    def diffs(self) -> list[Record]:
        """The whole `rf.diff` as a record, named by the size of the checkpoints, where it was measured."""
        return [Record(self.diff | {"operator": DIFF, "case": self.diff["size"]})] if self.diff else []

    def operators(self) -> dict[str, list[Record]]:
        """The records by operator, both in the order of the file."""
        found: dict[str, list[Record]] = {}
        for record in self.records:
            found.setdefault(record.operator, []).append(record)
        return found


def read(path: Path) -> Results:
    """Read one file of results."""
    raw = json.loads(path.read_text(encoding="utf-8"))
    records, model = ([Record(record) for record in raw.get(part, [])] for part in PARTS)
    return Results(path, raw["environment"], records, model, raw.get("sections", {}), raw.get("diff"), raw.get("calls"))


def newest(folder: Path = FOLDER, *, delta_files: bool = False) -> list[Path]:
    """Return the newest file of each device and kind of machine, CPUs first; of operators, or of delta files.

    What is measured comes in parts, each of which may be in a file of its own: the newest of each.
    """
    found: dict[tuple[str, str, str], tuple[str, Path]] = {}
    for path in sorted(folder.glob("*.json")):
        raw = json.loads(path.read_text(encoding="utf-8"))
        parts = raw.get("delta_files", ()) if delta_files else [part for part in PARTS if part in raw]
        if not parts:
            continue
        environment = raw["environment"]
        machine = (environment["device"], str(environment.get("gpu") or environment["cpu"]))
        dated = (environment["date"], path)
        for part in parts:
            found[*machine, part] = max(found.get((*machine, part), dated), dated)
    return list(dict.fromkeys(path for _, (_, path) in sorted(found.items())))


def read_all(paths: Iterable[Path]) -> list[Results]:
    """Read several files."""
    return [read(path) for path in paths]
