"""Whether the measurement of delta files runs and agrees, on tiny pairs; `make bench-deltas` takes the times."""

from __future__ import annotations

from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.checkpoint_pair import write_pair
from benchmarks.delta_files import speeds
from benchmarks.delta_files.against_peers import OURS, run_peer
from benchmarks.delta_files.special_values import CASES


@pytest.fixture(autouse=True)
def _untimed(benchmark: BenchmarkFixture) -> None:
    if not benchmark.disabled:
        pytest.skip("timed by `make bench-deltas`")
    benchmark.pedantic(lambda: None)


@pytest.mark.parametrize(("share", "of_floor"), [(0.0113, 1.05), (0.03, 1.05), (0.06, 1.05), (0.9, 1.15)])
def test_sizes_are_near_the_floor(tmp_path: Path, share: float, of_floor: float) -> None:
    write_pair(tmp_path / "pair", "tiny", share)
    (tmp_path / "fast").mkdir()
    found = speeds.measure(tmp_path / "pair", tmp_path / "fast", rounds=1)
    floor = found["floor"]["positions"] + found["floor"]["steps"]
    assert abs(found["floor"]["changed"] / found["floor"]["coordinates"] - share) < 0.1 * share
    assert floor < found["bytes"]["delta"] <= of_floor * floor
    assert found["bytes"]["delta"] <= 1.01 * found["bytes"]["zstd of after"]


def test_no_special_value_is_lost() -> None:
    assert run_peer(OURS, ["--special"], "", 120)["measured"] == dict.fromkeys(CASES, "kept")
