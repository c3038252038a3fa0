"""Every command that takes a checkpoint of any size stays in bounded memory, on a pair with tensors of 2 GB.

The pair has as many of them as there is disk for, up to 16 GB a side and never below 4: `make test-slow` says how many.
`RLFORGET_LARGE_GB` asks for another size.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from benchmarks.delta_files import large

GIB = 1 << 30
TENSOR_GB = 2
FOLDERS = 3.5  # that lie on the disk at a time: before, after, one output, and room for deltas
LEAST = 2


@pytest.mark.slow
def test_commands_take_a_gibibyte_at_most(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = int(os.environ.get("RLFORGET_LARGE_GB", "16")) // TENSOR_GB
    room = int(shutil.disk_usage(tmp_path).free / 1e9 / FOLDERS) // TENSOR_GB
    tensors = min(wanted, room)
    if tensors < LEAST:
        pytest.skip(f"a pair of {LEAST * TENSOR_GB} GB needs {FOLDERS * LEAST * TENSOR_GB:.0f} GB of disk")
    try:
        found = large.measure(tmp_path / "large", tensors)
    finally:
        shutil.rmtree(tmp_path / "large", ignore_errors=True)
    with capsys.disabled():
        print(f"\n{found['model_bytes'] / 1e9:.0f} GB a side")
        for name, one in found["commands"].items():
            print(f"{name:<40} {one['seconds']:7.1f} s {one['peak_bytes'] / 2**20:7.0f} MiB")
    # The kernel's high-water mark of all resident memory: anonymous memory is less than that.
    assert {name: one["peak_bytes"] for name, one in found["commands"].items() if one["peak_bytes"] > GIB} == {}
