"""The costs of finding circuits, beside TransformerLens, a training step, and one hooked forward a head.

The first two need TransformerLens in the Python of `--peer-python` (by default this one):
`pip install transformer-lens`, which is part of no extra but `bench-circuits`. With `--benchmark-disable` tiny models
are measured, and only the scores are held to agree.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.circuits.against_peer import NO_PEER, PEERS, task_of
from benchmarks.circuits.cost import best_seconds
from benchmarks.circuits.patching import one_forward_a_head
from benchmarks.circuits.shapes import build, prompts
from benchmarks.conftest import CIRCUIT_ROWS
from rlforget.circuits import find

ROOT = Path(__file__).parents[2]
MEBIBYTE = 2**20


@pytest.mark.parametrize("shape", ["gpt2", "qwen2"])
@pytest.mark.benchmark(min_rounds=1, max_time=0, warmup=False)
def test_eap_ig_beside_its_peer(benchmark: BenchmarkFixture, request: pytest.FixtureRequest, shape: str):
    disabled = benchmark.disabled
    measured = against_peer(f"{shape}-tiny" if disabled else shape, request.config.getoption("--peer-python"))
    assert measured["correlation"] >= 0.99
    benchmark.group = "eap-ig"
    benchmark.pedantic(lambda: None)  # the time is measured in the other process
    seconds, size = measured["seconds"], measured["bytes"]
    benchmark.extra_info.update(measured)
    for peer in PEERS:
        row = (f"eap-ig, {shape}", peer, f"{seconds[peer] / seconds['ours']:.1f}", f"{size['ours'] / size[peer]:.2f}")
        request.config.stash[CIRCUIT_ROWS].append((*row, f"{measured['correlation']:.4f}"))
    step = (f"{seconds['training step'] / seconds['ours']:.2f}", f"{size['ours'] / size['training step']:.2f}", "")
    request.config.stash[CIRCUIT_ROWS].append((f"eap-ig, {shape}", "training step", *step))


@pytest.mark.parametrize(
    ("shape", "positions"), [("tall", "all"), ("tall-late", "all"), ("tall", "last"), ("tall-short", "all")]
)
@pytest.mark.benchmark(min_rounds=1, max_time=0, warmup=False)
def test_patching_beside_one_forward_a_head(
    benchmark: BenchmarkFixture, request: pytest.FixtureRequest, shape: str, positions: Any
):
    shape = "tall-tiny" if benchmark.disabled else shape
    model, drawn = build(shape), prompts(shape)
    task = task_of(drawn)

    def ours() -> torch.Tensor:
        return find(model, task, "patching", positions=positions, batch_size=len(drawn.clean)).scores

    def theirs() -> torch.Tensor:
        return one_forward_a_head(model, drawn, last=positions == "last")

    torch.testing.assert_close(ours(), theirs(), rtol=1e-3, atol=1e-5)
    benchmark.group = "patching"
    benchmark.pedantic(lambda: None)
    if benchmark.disabled:
        return
    seconds = best_seconds({"ours": ours, "one forward a head": theirs}, rounds=2)
    times = seconds["one forward a head"] / seconds["ours"]
    benchmark.extra_info.update(
        shape=shape, positions=positions, seconds=seconds, times=times, threads=torch.get_num_threads()
    )
    row = (f"patching, {shape}, positions {positions}", "one forward a head", f"{times:.2f}", "", "")
    request.config.stash[CIRCUIT_ROWS].append(row)


def against_peer(shape: str, python: str) -> dict[str, Any]:
    """Measure in a process of its own, so that no library's state or memory touches another's."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    done = subprocess.run(
        [python or sys.executable, "-m", "benchmarks.circuits.against_peer", shape],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == NO_PEER:
        pytest.skip("needs TransformerLens: pip install transformer-lens, or name its Python with --peer-python")
    assert done.returncode == 0, done.stderr[-2000:]
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured
