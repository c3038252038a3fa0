"""Options of the benchmarks, the devices they run on, and where their results go."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import environment
from benchmarks.harness import Machine


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

    def of(self, device: str) -> dict[str, Any]:
        """What was measured on a device, as it is written."""
        found: dict[str, Any] = {"operators": [record for record in self.operators if record["device"] == device]}
        if device == "cpu":
            found |= {"diff": self.diff, "calls": self.calls}
        return {part: measured for part, measured in found.items() if measured}


RESULTS = pytest.StashKey[Results]()
CIRCUIT_ROWS = pytest.StashKey[list[tuple[str, ...]]]()
CONFLICT_ROWS = pytest.StashKey[list[tuple[str, ...]]]()
OWN = ("ours", "ceiling")
ELEMENTS = {"cpu": 2**25, "cuda": 2**28}
QUICK_ELEMENTS = 2**12


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --elements, --results and --peer-python."""
    parser.addoption("--elements", type=int, help="coordinates a tensor (default: 2**25 on a CPU, 2**28 on a GPU)")
    parser.addoption("--results", type=Path, help="folder for <device>-<date>.json (default: none is written)")
    parser.addoption("--peer-python", default="", help="the Python that has TransformerLens (default: this one)")


def pytest_configure(config: pytest.Config) -> None:
    """Make room for what is measured."""
    config.stash[RESULTS] = Results()
    config.stash[CIRCUIT_ROWS] = []
    config.stash[CONFLICT_ROWS] = []


@pytest.fixture(scope="session", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def machine(request: pytest.FixtureRequest) -> Machine:
    """Each device that is there; with --benchmark-disable for tiny tensors."""
    device = torch.device(request.param)
    if device.type == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device; torch finds none")
    quick = request.config.getoption("benchmark_disable")
    return Machine(device, QUICK_ELEMENTS if quick else _elements(request.config, device.type), quick)


def _elements(config: pytest.Config, device: str) -> int:
    asked: int | None = config.getoption("elements")
    return asked or ELEMENTS[device]


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write a file of results for each device."""
    folder = session.config.getoption("results")
    for device in ("cpu", "cuda"):
        measured = session.config.stash[RESULTS].of(device)
        if folder is None or not measured:
            continue
        found = environment.describe(torch.device(device)) | {"elements": _elements(session.config, device)}
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"environment": found} | measured, indent=1) + "\n"
        (folder / f"{environment.slug(found)}.json").write_text(text)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Show what was measured."""
    header = ("operator", "case", "device", "GB/s", "of ceiling", "times faster than", "extra MiB")
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
        record["device"],
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
