"""The costs of measuring a conflict and undoing it, beside a training step on the same model and batch, in one run.

With `--benchmark-disable` a tiny model is measured, and only what is counted is held: passes of the model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import rlforget as rf
from benchmarks.circuits.cost import best_seconds, with_peak_bytes
from benchmarks.conflict.setting import Setting, build, forward, training_step
from benchmarks.conftest import CONFLICT_ROWS

BATCHES = 4  # of a measurement, so that what is done once a call weighs as little as it does in use
ROUNDS = 3
SHARES = (0.01, 0.02, 0.04, 0.08)
MEBIBYTE = 2**20


def calls_of(model: Any, function: Callable[[], object]) -> int:
    """Count the forward passes of a model during a call."""
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    handle = model.register_forward_pre_hook(count)
    try:
        function()
    finally:
        handle.remove()
    return calls


@pytest.fixture
def setting(benchmark: BenchmarkFixture) -> Setting:
    return build("tiny" if benchmark.disabled else "1M")


@pytest.mark.benchmark(min_rounds=1, max_time=0, warmup=False)
def test_fisher_and_damage(benchmark: BenchmarkFixture, request: pytest.FixtureRequest, setting: Setting):
    model, delta = setting.model, setting.delta
    batches = setting.batches(BATCHES * setting.size.rows)
    functions: dict[str, Callable[[], object]] = {
        "training step": lambda: training_step(model, batches),
        "forward": lambda: forward(model, batches),
        "fisher": lambda: rf.fisher(model, batches, delta, samples=10**6),
        "damage": lambda: rf.damage(model, delta, batches, samples=10**6),
    }
    assert calls_of(model, functions["damage"]) == BATCHES  # one pass a batch
    benchmark.group = "conflict"
    benchmark.pedantic(lambda: None)  # the times are measured in turns
    if benchmark.disabled:
        return
    seconds = best_seconds(functions, ROUNDS)
    benchmark.extra_info["seconds"] = seconds
    for ours, beside, bar in (("fisher", "training step", 2), ("damage", "forward", 2)):
        row = (f"{ours}, a batch", beside, f"{seconds[ours] / seconds[beside]:.2f}", str(bar))
        request.config.stash[CONFLICT_ROWS].append(row)


@pytest.mark.benchmark(min_rounds=1, max_time=0, warmup=False)
def test_subspace_rollback(benchmark: BenchmarkFixture, request: pytest.FixtureRequest, setting: Setting):
    """From given completions, n to restore and n to protect, and the write; beside training on all of them."""
    model, delta, n = setting.model, setting.delta, setting.size.samples
    earlier, later = setting.batches(n, seed=1), setting.batches(n, seed=2)

    def rollback(passes: int) -> None:
        found = rf.conflict_subspace(model, delta, [earlier], [later], samples=n, passes=passes)
        rf.rollback(model, delta, found)()  # and back, for the next round

    rollback(1)
    benchmark.group = "conflict"
    benchmark.pedantic(lambda: None)
    if benchmark.disabled:
        return
    step = "training step"
    passes = {"one pass": lambda: rollback(1), "two passes": lambda: rollback(2)}
    seconds = best_seconds({**passes, step: lambda: training_step(model, earlier + later)}, 1)
    benchmark.extra_info.update(seconds=seconds, samples=n)
    for name in passes:
        row = (f"subspace rollback, n = {n}, {name}", step, f"{seconds[name] / seconds[step]:.2f}", "8")
        request.config.stash[CONFLICT_ROWS].append(row)


@pytest.mark.benchmark(min_rounds=1, max_time=0, warmup=False)
def test_memory_of_the_fisher(benchmark: BenchmarkFixture, request: pytest.FixtureRequest):
    """Peak of tensors at deltas of several sizes: what a changed coordinate adds, the activations being the same."""
    peaks: dict[int, int] = {}
    for share in SHARES:
        setting = build("tiny" if benchmark.disabled else "1M", changed=share)
        batch = setting.batches(setting.size.rows)
        _, peak = with_peak_bytes(lambda s=setting, b=batch: rf.fisher(s.model, b, s.delta))  # type: ignore[misc]
        peaks[setting.delta.changed] = peak
    benchmark.group = "conflict"
    benchmark.pedantic(lambda: None)
    benchmark.extra_info["peak_bytes_by_changed"] = peaks
    (fewest, least), *_, (most, largest) = peaks.items()
    slope = (largest - least) / (most - fewest)
    # Two sums and a row a sample, float32, and the indices.
    assert slope < 4 * (setting.size.rows + 2) * 1.5 + 16
    if not benchmark.disabled:
        row = ("fisher's memory", "bytes a coordinate", f"{slope:.0f}", f"and {least / MEBIBYTE:.0f} MiB at {fewest}")
        request.config.stash[CONFLICT_ROWS].append(row)
