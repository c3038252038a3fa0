"""Options of the benchmarks on a CPU, and where their results go; `benchmarks.gpu` is the suite for a GPU."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import environment
from benchmarks.ceiling import float_speed
from benchmarks.harness import Machine
from rlforget_kernels.common import amx_cpu, products_cpu


@dataclass
class Results:
    """What a run measured.

    Attributes:
        operators: What `harness.Measurement.record` gives, with the operator's and the case's name.
        diff: What `profile_diff.profile` gives.
        calls: What `first_call.seconds_of_calls` gives.
    """

    operators: list[dict[str, Any]] = field(default_factory=list)
    diff: dict[str, Any] | None = None
    calls: dict[str, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        """What was measured, as it is written."""
        return {part: measured for part, measured in vars(self).items() if measured}


RESULTS = pytest.StashKey[Results]()
CIRCUIT_ROWS = pytest.StashKey[list[tuple[str, ...]]]()
CONFLICT_ROWS = pytest.StashKey[list[tuple[str, ...]]]()
CPU = torch.device("cpu")
OWN = ("ours", "ceiling")
ELEMENTS = 2**25
QUICK_ELEMENTS = 2**12
_MORE_SPEEDS = 50


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --elements, --results and --peer-python."""
    parser.addoption("--elements", type=int, default=ELEMENTS, help="coordinates a tensor (default: 2**25)")
    parser.addoption("--results", type=Path, help="folder for <device>-<date>.json (default: none is written)")
    parser.addoption("--peer-python", default="", help="the Python that has TransformerLens (default: this one)")


def pytest_configure(config: pytest.Config) -> None:
    """Make room for what is measured."""
    config.stash[RESULTS] = Results()
    config.stash[CIRCUIT_ROWS] = []
    config.stash[CONFLICT_ROWS] = []


@pytest.fixture(scope="session")
def machine(request: pytest.FixtureRequest) -> Machine:
    """The CPU; with --benchmark-disable for tiny tensors."""
    quick = request.config.getoption("benchmark_disable")
    return Machine(CPU, QUICK_ELEMENTS if quick else request.config.getoption("elements"), quick)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write a file of results."""
    folder, measured = session.config.getoption("results"), session.config.stash[RESULTS].to_dict()
    if folder is None or not measured:
        return
    speeds = [record["float_speed"] for record in measured.get("operators", []) if record["flops"]]
    if speeds:  # few rounds may all have been disturbed
        speeds += [float_speed() for _ in range(_MORE_SPEEDS)]
    found = environment.describe(CPU) | {
        "elements": session.config.getoption("elements"),
        "float_speed": max(speeds, default=0.0),
        "bfloat16_products": amx_cpu.available() or products_cpu.PAIRS,
    }
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"environment": found} | measured, indent=1) + "\n"
    (folder / f"{environment.slug(found)}.json").write_text(text)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Show what was measured."""
    header = ("operator", "case", "GB/s", "of ceiling", "times faster than", "extra MiB")
    _table(terminalreporter, "operators", header, [_row(record) for record in config.stash[RESULTS].operators])
    circuits = ("circuits", "beside", "times faster", "share of memory", "correlation")
    _table(terminalreporter, "circuits", circuits, config.stash[CIRCUIT_ROWS])
    _table(terminalreporter, "conflict", ("conflict", "beside", "times", "at most"), config.stash[CONFLICT_ROWS])


def _row(record: dict[str, Any]) -> tuple[str, ...]:
    seconds, extra = record["seconds"], record["extra_bytes"]["ours"]
    peers = ", ".join(f"{name} {seconds[name] / seconds['ours']:.1f}" for name in seconds if name not in OWN)
    return (
        record["operator"],
        record["case"],
        f"{record['moved'] / seconds['ours'] / 1e9:.1f}",
        f"{seconds['ceiling'] / seconds['ours']:.0%}",
        peers,
        "" if extra is None else f"{extra / 2**20:.1f}",
    )


def _table(
    terminalreporter: pytest.TerminalReporter, title: str, header: tuple[str, ...], found: list[tuple[str, ...]]
) -> None:
    if not found:
        return
    rows = [header, *found]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    terminalreporter.section(title)
    for row in rows:
        terminalreporter.write_line("  ".join(map(str.ljust, row, widths)).rstrip())
