"""What a call costs: its best processor time among interleaved rounds, and the peak of the tensors it makes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch

T = TypeVar("T")


def with_peak_bytes(function: Callable[[], T]) -> tuple[T, int]:
    """Return what a call returns, and the peak of tensor memory during it, less what there was before, in bytes.

    On the CPU, from the allocations and releases that the profiler records.
    """
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True, acc_events=True) as profile:
        result = function()
    recorded: Any = profile.profiler
    changes = [
        (event.start_ns(), event.nbytes()) for event in recorded.kineto_results.events() if event.name() == "[memory]"
    ]
    now = peak = 0
    for _, change in sorted(changes):
        now += change
        peak = max(peak, now)
    return result, peak


def best_seconds(functions: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the best processor time of each, over all threads, taking turns.

    It hardly minds what else runs on the machine, where wall-clock time does.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.process_time()
            function()
            times[name].append(time.process_time() - start)
    return {name: min(taken) for name, taken in times.items()}
