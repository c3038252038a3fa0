"""Every Triton kernel compiles for every architecture we name, and its machine code costs what it should."""

from __future__ import annotations

import importlib
import multiprocessing
import re
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import pytest

from rlforget_kernels import OPERATORS, aot
from rlforget_kernels.aot import ARCHITECTURES, Report, access_widths, measure

HOPPER = 90

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def compiler() -> Iterator[ProcessPoolExecutor]:
    """A process that compiles kernels: this one interprets them, and a process can do only one of the two."""
    spawn = multiprocessing.get_context("spawn")
    with pytest.MonkeyPatch.context() as patch, ProcessPoolExecutor(1, mp_context=spawn) as pool:
        patch.setenv("TRITON_INTERPRET", "0")
        yield pool


def named(reports: list[Report]) -> list[str]:
    return [f"{report.operator} {report.kernel} {report.label} sm_{report.arch}" for report in reports]


@pytest.mark.parametrize("operator", OPERATORS)
def test_every_kernel_of_an_operator_is_listed(operator: str):
    backend = importlib.import_module(f"rlforget_kernels.{operator}.gpu")
    kernels = {name for name in vars(backend) if name.endswith("_kernel")}
    assert {spec.kernel.__name__ for spec in backend.KERNELS} == kernels
    assert kernels


@pytest.mark.parametrize("operator", OPERATORS)
def test_machine_code(compiler: ProcessPoolExecutor, operator: str):
    """Every compilation for one architecture, and one of each kernel for the others."""
    everything = compiler.submit(measure, [HOPPER], operators=[operator])
    others = [arch for arch in ARCHITECTURES if arch != HOPPER]
    samples = compiler.submit(measure, others, sample=True, operators=[operator])
    reports = everything.result() + samples.result()
    assert {(report.operator, report.arch) for report in reports} == {(operator, arch) for arch in ARCHITECTURES}
    assert_no_spills(reports)
    assert_streaming_kernels_load_16_bytes(reports)
    assert_full_tiles_read_every_input_once(reports)
    assert_outputs_are_written_once(reports)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_compilation_for_every_architecture(compiler: ProcessPoolExecutor):
    reports = compiler.submit(measure, ARCHITECTURES).result()
    assert_no_spills(reports)
    assert_streaming_kernels_load_16_bytes(reports)
    assert_full_tiles_read_every_input_once(reports)
    assert_outputs_are_written_once(reports)


def assert_no_spills(reports: list[Report]) -> None:
    assert named([report for report in reports if report.stack or report.local]) == []


def assert_streaming_kernels_load_16_bytes(reports: list[Report]) -> None:
    assert named([report for report in reports if report.streams and max(report.loads) < 16]) == []


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


def assert_full_tiles_read_every_input_once(reports: list[Report]) -> None:
    """By their 16-byte loads; narrower ones serve the tile at the end, or what is not streamed."""
    for report in reports:
        wide = report.loads.get(16)
        if report.kernel == "compare_kernel":
            # Four loads of 16 bytes a thread and side are one tile: see STREAM_BLOCK.
            assert wide == 8, named([report])
        elif report.operator in BYTES_READ and report.streams:
            least = next(size for label, size in BYTES_READ[report.operator].items() if report.label.startswith(label))
            least += 4 * report.label.endswith("scored")
            # A tile is 2048 elements for 128 threads, so as many loads of 16 bytes as an element has bytes.
            assert wide == least, named([report])


BYTES_WRITTEN = {
    "fisher_accumulate": {"": 4},
    "conflict_score": {"": 4},
    "subtract": {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "float8": 1},
}
"""Bytes that an element's output holds, of the operators that write every element."""

WIDTHS = {"8 bit": 1, "16 bit": 2, "32 bit": 4, "64 bit": 8}
DTYPES = {"float64": 8, "int64": 8, "float32": 4, "int32": 4, "bfloat16": 2, "int16": 2, "float8": 1, "int8": 1}


def assert_outputs_are_written_once(reports: list[Report]) -> None:
    """Dense outputs by 16-byte stores, a tile 2048 elements for 128 threads; scattered ones an element a store."""
    for report in reports:
        if report.operator in BYTES_WRITTEN:
            sizes = BYTES_WRITTEN[report.operator]
            size = next(size for label, size in sizes.items() if report.label.startswith(label))
            # The tile at the end has its own, narrow stores, sixteen elements a thread.
            assert report.stores == {16: size, min(size, 8): 16}, named([report])
        elif report.operator == "rollback":
            size = next(size for dtype, size in DTYPES.items() if report.label.startswith(dtype))
            assert report.stores == {size: 16}, named([report])
        elif report.operator == "patch":
            # The check writes its count alone, never the weight.
            expected = {4: 1} if report.kernel == "mismatch_kernel" else {WIDTHS[report.label]: 16}
            assert report.stores == expected, named([report])
        elif report.operator == "fingerprint":
            assert report.stores == {8: 2}, named([report])  # two sums a program
            # A tile is one 16-byte load a thread; the loop over tiles is unrolled this many times.
            assert report.loads[16] == {"8 bit": 8, "16 bit": 4, "32 bit": 2}[report.label], named([report])


def test_access_widths_reads_machine_code():
    code = "LDG.E.128.CONSTANT R4, [R2]; LDG.E R1, [R2]; @P0 LDG.E.U16 R0, [R2.64]; LDGSTS.E R9; STG.E.64 [R2], R4"
    assert access_widths(code, "LDG") == {16: 1, 4: 1, 2: 1}
    assert access_widths(code, "STG") == {8: 1}


def test_command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    report = Report("patch", "write_kernel", "8 bit", 80, False, 24, 0, 0, 512, {4: 2, 1: 2}, {1: 1})
    asked = []
    monkeypatch.setattr(aot, "measure", lambda *arguments: asked.append(arguments) or [report])
    aot.main([])
    aot.main(["--arch", "80", "90", "--sample", "--operator", "patch"])
    assert asked == [(ARCHITECTURES, False, OPERATORS), ([80, 90], True, ["patch"])]
    header, line, *_ = capsys.readouterr().out.splitlines()
    assert header.split()[:5] == ["operator", "kernel", "for", "arch", "regs"]
    assert re.split("  +", line) == ["patch", "write_kernel", "8 bit", "80", "24", "0", "0", "512", "2x4B 2x1B", "1x1B"]
