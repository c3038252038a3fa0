"""A clock that passes only while something timed runs: wall time on a CPU, the device's own events on a GPU."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

_FLUSH_BYTES = 256 << 20  # more than any GPU's cache
_passed = 0.0
_flush: dict[torch.device, torch.Tensor] = {}


def now() -> float:
    """Seconds that timed calls have taken so far. The timer that pytest-benchmark is given."""
    return _passed


def timed(function: Callable[[], object], device: torch.device) -> float:
    """Run a call, wait for it, let the clock pass, and return its seconds.

    On a GPU the cache is overwritten first, so that every call finds it alike, and events on the stream take the time.
    """
    global _passed
    taken = _on_cuda(function, device) if device.type == "cuda" else _on_cpu(function)
    _passed += taken
    return taken


def _on_cpu(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _on_cuda(function: Callable[[], object], device: torch.device) -> float:
    if device not in _flush:
        _flush[device] = torch.empty(_FLUSH_BYTES, dtype=torch.int8, device=device)
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    _flush[device].zero_()
    start.record()
    function()
    stop.record()
    torch.cuda.synchronize(device)
    return start.elapsed_time(stop) / 1e3
