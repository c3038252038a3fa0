"""Measure launch settings on this machine's GPU and rewrite the table that the operators take them from.

    python -m rlforget_kernels.tune --operator sparse_delta --out launch_settings.json

Every operator runs on scratch tensors in each setting that it could have, in turns, so that what else happens on the
device hits all alike; the fastest is kept if it beats the present one by more than the noise.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from rlforget_kernels import OPERATORS
from rlforget_kernels.common.settings import TABLE, Rows, Setting, architecture_of, table
from rlforget_kernels.common.tunable import Tunable

Timer = Callable[[Callable[[], object]], float]
"""A call -> the seconds it took."""

ELEMENTS = 1 << 27
ROUNDS = 15
GAIN = 0.02
"""The share of its time that a new setting must save to replace the present one."""


def tunables(operators: Sequence[str] = OPERATORS) -> Iterator[Tunable]:
    """Yield what the operators' `gpu.py` list in `TUNABLE`."""
    for operator in operators:
        yield from getattr(importlib.import_module(f"rlforget_kernels.{operator}.gpu"), "TUNABLE", ())


def tune(
    tunable: Tunable, size: int, device: torch.device, timer: Timer, elements: int = ELEMENTS, rounds: int = ROUNDS
) -> tuple[Setting, dict[Setting, float]]:
    """Choose the launch setting of a tunable for elements of `size` bytes.

    Args:
        tunable: What to measure.
        size: Bytes an element.
        device: Where to measure.
        timer: Takes the time of a call.
        elements: Elements of the scratch tensors.
        rounds: Times that each setting is timed.

    Returns:
        The setting to use, and the median seconds of each one tried. One that the device cannot run is left out.
    """
    present = tunable.settings.at(size, architecture_of(device))
    call = tunable.trial(size, elements, device)

    def timed(setting: Setting) -> float:
        with tunable.settings.forced(size, setting):
            return timer(call)

    runnable = [setting for setting in dict.fromkeys([present, *tunable.candidates(size)]) if _runs(timed, setting)]
    times: dict[Setting, list[float]] = {setting: [] for setting in runnable}
    for _ in range(rounds):
        for setting in runnable:
            times[setting].append(timed(setting))
    seconds = {setting: statistics.median(taken) for setting, taken in times.items()}
    best = min(seconds, key=lambda setting: seconds[setting])
    return (best if seconds[best] < (1 - GAIN) * seconds.get(present, float("inf")) else present), seconds


def _runs(timed: Callable[[Setting], float], setting: Setting) -> bool:
    """Whether a setting compiles and launches here; also warms it up."""
    from triton.runtime.errors import OutOfResources

    try:
        timed(setting)
    except OutOfResources:  # too much shared memory or too many threads: a fact about the device
        return False
    return True


def time_on_device(call: Callable[[], object]) -> float:
    """Take a call's time by events on the stream."""
    event: Any = torch.cuda.Event
    start, stop = event(enable_timing=True), event(enable_timing=True)
    start.record()
    call()
    stop.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(stop)) / 1e3


def with_setting(rows: Rows, operator: str, architecture: int, size: int, setting: Setting) -> Rows:
    """Return the table with one more setting, or a changed one."""
    changed: Rows = json.loads(json.dumps(rows))
    sizes = changed.setdefault(operator, {}).setdefault(str(architecture), {})
    sizes[str(size)] = {"block": setting.block, "warps": setting.warps, "stages": setting.stages}
    return changed


def text_of(rows: Rows) -> str:
    """Return the table as text, a line a setting, the same for the same settings."""
    text = json.dumps(rows, indent=2, sort_keys=True)
    return re.sub(r"\{\s+(\"block\"[^}]*?)\s+\}", lambda match: f"{{{' '.join(match[1].split())}}}", text) + "\n"


def main(arguments: list[str] | None = None, timer: Timer = time_on_device) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m rlforget_kernels.tune", description=__doc__.split("\n\n")[0])
    parser.add_argument("--operator", nargs="+", default=OPERATORS, choices=OPERATORS, metavar="NAME")
    parser.add_argument("--elements", type=int, default=ELEMENTS)
    parser.add_argument("--out", type=Path, default=TABLE, help="where to write the table (default: the package's own)")
    options = parser.parse_args(arguments)
    device, architecture = _device()
    if architecture is None:
        sys.stderr.write("tune: expected a CUDA device; torch finds none. Run it on the machine to tune for.\n")
        return 1
    rows = table()
    for tunable in tunables(options.operator):
        for size in tunable.sizes:
            chosen, seconds = tune(tunable, size, device, timer, options.elements)
            rows = with_setting(rows, tunable.settings.operator, architecture, size, chosen)
            sys.stdout.write(f"{tunable.settings.operator}, {size} bytes: {chosen}, {1e3 * seconds[chosen]:.3f} ms\n")
            options.out.write_text(text_of(rows), encoding="utf-8")  # what is measured is kept if a later one fails
    return 0


def _device() -> tuple[torch.device, int | None]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return device, architecture_of(device)


if __name__ == "__main__":
    sys.exit(main())
