"""What the machine at hand can do, measured in the run that measures us, and the table at the end."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import pytest
import torch

from rlforget_kernels.common.threads import map_slices

ROWS = pytest.StashKey[list[tuple[str, ...]]]()
CIRCUIT_ROWS = pytest.StashKey[list[tuple[str, ...]]]()


@dataclass(frozen=True)
class Machine:
    """A device with its speed on arrays of the size that the benchmarks use.

    Attributes:
        device: Where the tensors are.
        elements: How many coordinates a benchmark takes.
        read: GB/s of a pass that only reads.
        copy: GB/s of a copy or of a pass in place, whichever is faster, read and write counted.
    """

    device: torch.device
    elements: int
    read: float
    copy: float


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --elements and --peer-python."""
    parser.addoption("--elements", type=int, help="coordinates a tensor (default: 2**23 on a CPU, 2**28 on a GPU)")
    parser.addoption("--peer-python", default="", help="the Python that has TransformerLens (default: this one)")


def pytest_configure(config: pytest.Config) -> None:
    """Make room for the tables' rows."""
    config.stash[ROWS] = []
    config.stash[CIRCUIT_ROWS] = []


def seconds(function: Callable[[], object], device: torch.device, rounds: int = 15) -> float:
    """The best time of a call that is waited for: what is slower, other work on the machine slowed."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times)


@numba.njit(nogil=True)
def _xor(words: np.ndarray) -> int:
    total = np.int64(0)
    for i in range(words.size):
        total ^= words[i]
    return total


@pytest.fixture(scope="session", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def machine(request: pytest.FixtureRequest) -> Machine:
    """Each device that is there."""
    device = torch.device(request.param)
    if device.type == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device; torch finds none")
    elements = request.config.getoption("elements") or (2**28 if device.type == "cuda" else 2**23)
    source = torch.ones(elements, device=device)
    target = torch.empty_like(source)
    if device.type == "cuda":
        read = seconds(source.sum, device)
    else:
        words = source.view(torch.int64).numpy()
        read = seconds(lambda: map_slices(lambda start, stop: _xor(words[start:stop]), words.size), device)
    copy = min(seconds(lambda: target.copy_(source), device), seconds(target.neg_, device))
    size = 4 * elements / 1e9
    return Machine(device, elements, read=size / read, copy=2 * size / copy)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Show what was measured, beside the machine's own speed."""
    operators = ("operator", "case", "device", "GB/s", "of ceiling", "torch GB/s", "times torch")
    _table(terminalreporter, "operators", operators, config.stash[ROWS])
    circuits = ("circuits", "beside", "times faster", "share of memory", "correlation")
    _table(terminalreporter, "circuits", circuits, config.stash[CIRCUIT_ROWS])


def _table(terminalreporter: pytest.TerminalReporter, title: str, header: tuple[str, ...], found: list[Any]) -> None:
    if not found:
        return
    rows = [header, *found]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    terminalreporter.section(title)
    for row in rows:
        terminalreporter.write_line("  ".join(map(str.ljust, row, widths)).rstrip())
