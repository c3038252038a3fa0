"""Every operator on the CPU, beside the machine's ceiling and its peers: `benchmarks/cases`, timed in turns.

A case is timed only after its result has been held against the peers'.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks import clock, portable
from benchmarks.conftest import RESULTS
from benchmarks.harness import Machine, Measurement, discover

CASES = discover()


@pytest.mark.parametrize(("operator", "label"), CASES, ids=map(" ".join, CASES))
@pytest.mark.benchmark(timer=clock.now)
def test_operator(
    benchmark: BenchmarkFixture, machine: Machine, operator: str, label: str, request: pytest.FixtureRequest
):
    case = CASES[operator, label](machine)
    assert case.agree()
    benchmark.group = operator
    if machine.quick:
        benchmark.pedantic(case.ours)
        return
    measurement = Measurement(case, machine.device)
    benchmark.pedantic(measurement.ours, setup=measurement.before_ours, rounds=measurement.rounds)
    record = {"operator": operator, "case": label} | measurement.record()
    benchmark.extra_info.update(record)
    request.config.stash[RESULTS].operators.append(record)


@pytest.mark.skipif(not portable.applies(), reason="numba compiles for x86 on such a processor alone")
@pytest.mark.benchmark(group=portable.OPERATOR)
def test_without_wide_vectors(
    benchmark: BenchmarkFixture, machine: Machine, tmp_path: Path, request: pytest.FixtureRequest
):
    found = portable.measure(machine, tmp_path)
    assert [record["case"] for record in found] == ([] if machine.quick else list(portable.LABELS))
    benchmark.pedantic(lambda: None)  # the time is taken in another process
    request.config.stash[RESULTS].operators += found
