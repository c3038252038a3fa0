"""A whole `rf.diff`, from files to delta, and what its first call costs."""

from __future__ import annotations

from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.checkpoint_pair import SHAPES, write_pair
from benchmarks.conftest import RESULTS
from benchmarks.first_call import seconds_of_calls
from benchmarks.profile_diff import profile


@pytest.mark.benchmark(group="diff")
def test_diff_of_checkpoints(benchmark: BenchmarkFixture, tmp_path: Path, request: pytest.FixtureRequest):
    quick = benchmark.disabled
    size = "tiny" if quick else "0.5b"
    write_pair(tmp_path, size)
    found = profile(tmp_path / "before", tmp_path / "after", rounds=1 if quick else 7)
    assert found["coordinates"] == sum(_elements(dimensions) for _, dimensions in SHAPES[size].tensors())
    assert 0.010 < found["changed"] / found["coordinates"] < 0.013
    assert {"sparse_delta", "rest"} <= {part.removeprefix("foreach_") for part in found["parts"]}
    benchmark.pedantic(lambda: None)  # the time is taken above, in turns with bare reads
    request.config.stash[RESULTS].diff = {"size": size} | found


@pytest.mark.benchmark(group="diff")
def test_first_and_second_call(benchmark: BenchmarkFixture, tmp_path: Path, request: pytest.FixtureRequest):
    if benchmark.disabled:
        pytest.skip("takes half a minute; with --benchmark-disable nothing is timed")
    write_pair(tmp_path, "tiny")
    found = seconds_of_calls(tmp_path / "before", tmp_path / "after", tmp_path / "cache")
    assert found["first"] > found["second"] > found["start"]
    benchmark.pedantic(lambda: None)  # the time is taken in other processes
    request.config.stash[RESULTS].calls = found


def _elements(dimensions: tuple[int, ...]) -> int:
    elements = 1
    for dimension in dimensions:
        elements *= dimension
    return elements
