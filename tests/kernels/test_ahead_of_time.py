"""Every Triton kernel compiles for every architecture we name, and its machine code costs what it should."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from typing import Any

import pytest

from rlforget_kernels import OPERATORS
from rlforget_kernels.aot import ARCHITECTURES, Report, access_widths, table

HOPPER = 90


@pytest.fixture(scope="module")
def reports() -> list[Report]:
    """Everything for one architecture, and one compilation of each kernel for the others."""
    others = [arch for arch in ARCHITECTURES if arch != HOPPER]
    return compiled("--arch", HOPPER) + compiled("--sample", "--arch", *others)


def compiled(*arguments: object) -> list[Report]:
    # A process of its own: this one interprets kernels and cannot compile them.
    command = [sys.executable, "-m", "rlforget_kernels.aot", "--json", *map(str, arguments)]
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return [Report(**_with_integer_widths(report)) for report in json.loads(result.stdout)]


def _with_integer_widths(report: dict[str, Any]) -> dict[str, Any]:
    for side in ("loads", "stores"):
        report[side] = {int(size): count for size, count in report[side].items()}
    return report


def named(reports: list[Report]) -> list[str]:
    return [f"{report.operator} {report.kernel} {report.label} sm_{report.arch}" for report in reports]


def test_every_operator_and_architecture_is_there(reports: list[Report]):
    found = {(report.operator, report.arch) for report in reports}
    assert found == {(operator, arch) for operator in OPERATORS for arch in ARCHITECTURES}


@pytest.mark.parametrize("operator", OPERATORS)
def test_every_kernel_of_an_operator_is_listed(operator: str):
    backend = importlib.import_module(f"rlforget_kernels.{operator}.gpu")
    kernels = {name for name in vars(backend) if name.endswith("_kernel")}
    assert {spec.kernel.__name__ for spec in backend.KERNELS} == kernels
    assert kernels


def test_no_spills_and_no_local_memory(reports: list[Report]):
    assert named([report for report in reports if report.stack or report.local]) == []


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_no_spills_anywhere():
    assert named([report for report in compiled() if report.stack or report.local]) == []


def test_streaming_kernels_load_16_bytes(reports: list[Report]):
    streaming = [report for report in reports if report.streams]
    assert streaming
    assert named([report for report in streaming if max(report.loads) < 16]) == []


def test_every_element_is_loaded_once_by_sparse_delta(reports: list[Report]):
    """A full tile loads both sides once with wide loads; the narrow ones serve the tile at the end."""
    for report in reports:
        if report.kernel == "compare_kernel":
            # Four loads of 16 bytes a thread and side are one tile: see STREAM_BLOCK.
            assert report.loads[16] == 8, named([report])


BYTES_READ = {
    "fisher_accumulate": {"float64": 12, "float32": 8, "bfloat16": 6, "float16": 6, "float8": 5},
    "conflict_score": {"taylor": 12, "two_fisher": 12, "magnitude": 4, "": 8},
    "select_top": {"": 4},
    "subtract": {"float64": 12, "float32": 8, "bfloat16": 6, "float16": 6, "float8": 5},
    "rollback": {
        "float64": 16,
        "int64": 16,
        "float32": 8,
        "int32": 8,
        "bfloat16": 4,
        "int16": 4,
        "float8": 2,
        "int8": 2,
    },
}
"""Bytes that an element costs at least, by operator and the start of the label."""


def test_full_tiles_read_every_input_once(reports: list[Report]):
    for report in reports:
        if report.operator in BYTES_READ and report.streams:
            least = next(size for label, size in BYTES_READ[report.operator].items() if report.label.startswith(label))
            least += 4 * report.label.endswith("scored")
            # A tile is 2048 elements for 128 threads, so 16 a thread; what is narrower serves the tile at the end.
            assert sum(size * count for size, count in report.loads.items() if size >= 16) == 16 * least, named(
                [report]
            )


def test_access_widths_reads_machine_code():
    code = "LDG.E.128.CONSTANT R4, [R2]; LDG.E R1, [R2]; @P0 LDG.E.U16 R0, [R2.64]; LDGSTS.E R9; STG.E.64 [R2], R4"
    assert access_widths(code, "LDG") == {16: 1, 4: 1, 2: 1}
    assert access_widths(code, "STG") == {8: 1}


def test_table_has_a_line_for_each_report(reports: list[Report]):
    lines = table(reports).splitlines()
    assert len(lines) == len(reports) + 1
    assert named(reports)[0].split()[0] in lines[1]
