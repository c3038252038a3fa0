"""Triton kernels compile for the architectures we name, and their machine code costs what it should."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import multiprocessing
import re
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest
import triton.language as tl

from rlforget_kernels import OPERATORS, aot
from rlforget_kernels.aot import ARCHITECTURES, Report, measure, specs
from rlforget_kernels.common.machine_code import (
    WIDE,
    access_widths,
    bytes_for_elements,
    masked_bytes,
    scalar_widths,
    share_in_loops,
)

HOPPER = 90
CHEAP = Report(
    operator="subtract",
    kernel="subtract_kernel",
    label="8 bit",
    arch=HOPPER,
    streams=True,
    registers=24,
    stack=0,
    spills=0,
    local=0,
    shared=512,
    loads={16: 5, 4: 16},
    ahead={16: 2},
    stores={16: 1, 1: 16},
    narrow=0,
    read=5,
    written=1,
    reads=5,
    writes=1,
    copied=1024,
    copies=1024,
)

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
    """One compilation or two of each kernel; the slow suite makes them all, for every architecture."""
    reports = compiler.submit(measure, [HOPPER], sample=True, operators=[operator]).result()
    assert {(report.operator, report.arch) for report in reports} == {(operator, HOPPER)}
    assert_costs(reports)


@pytest.mark.parametrize("architecture", [arch for arch in ARCHITECTURES if arch != HOPPER])
def test_machine_code_of_other_architectures(compiler: ProcessPoolExecutor, architecture: int):
    """Of an operator of each kind: what compares, what writes, what counts, what multiplies."""
    operators = ["sparse_delta", "subtract", "conflict_score", "delta_matmul"]
    reports = compiler.submit(measure, [architecture], sample=True, operators=operators).result()
    assert {report.operator for report in reports} == set(operators)
    assert_costs(reports)


def test_a_sample_has_what_streams_and_what_does_not():
    listed = {(operator, spec.kernel.__name__, spec.streams) for operator, spec in specs()}
    sampled = [(operator, spec.kernel.__name__, spec.streams) for operator, spec in specs(sample=True)]
    assert set(sampled) == listed
    assert len(sampled) == len(listed)


def test_tensors_at_odd_addresses_and_wide_indices_are_compiled_too():
    listed = list(specs())
    for name, value in (("ALIGNED", False), ("INDEX_TYPE", tl.int64)):
        having = {spec.kernel for _, spec in listed if name in spec.constexprs}
        assert having
        assert {spec.kernel for _, spec in listed if spec.constexprs.get(name) == value} == having


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_compilation_for_every_architecture(compiler: ProcessPoolExecutor):
    reports = compiler.submit(measure, ARCHITECTURES).result()
    assert {(report.operator, report.arch) for report in reports} == set(itertools.product(OPERATORS, ARCHITECTURES))
    assert_costs(reports)


def assert_costs(reports: list[Report]) -> None:
    """No spills, wide loads where whole tensors are read in order, and the bytes that the operator says it needs.

    Of a full tile every load is wide: as many bytes as it needs are, and what is narrow has a mask or is one number.
    """
    assert named([report for report in reports if report.stack > report.spills or report.local]) == []
    assert named([report for report in reports if report.streams and max(report.loads) < WIDE]) == []
    assert named([report for report in reports if report.streams and report.narrow]) == []
    assert named([report for report in reports if report.reads is not None and report.read != report.reads]) == []
    assert named([report for report in reports if report.writes is not None and report.written != report.writes]) == []
    assert named([report for report in reports if report.copies is not None and report.copied != report.copies]) == []


def test_what_streams_through_shared_memory_says_the_fewest_bytes():
    listed = [spec for _, spec in specs(operators=["delta_matmul", "gradient_gram"])]
    ahead = [
        spec for spec in listed if spec.kernel.__name__ in ("delta_matmul_kernel", "pairwise_kernel", "sum_kernel")
    ]
    assert len(ahead) > 20
    # Of what starts at no multiple of 16 bytes the compiler chooses.
    assert all(spec.copies for spec in ahead if "neither" not in spec.label and "unaligned" not in spec.label)


@pytest.mark.parametrize("operator", OPERATORS)
def test_what_streams_says_the_fewest_bytes(operator: str):
    silent = [
        spec.label for _, spec in specs(operators=[operator]) if spec.streams and None in (spec.reads, spec.writes)
    ]
    assert silent == []


def test_access_widths_reads_machine_code():
    code = "LDG.E.128.CONSTANT R4, [R2]; LDG.E R1, [R2]; @P0 LDG.E.U16 R0, [R2.64]; LDGSTS.E R9; STG.E.64 [R2], R4"
    assert access_widths(code, "LDG") == {16: 1, 4: 1, 2: 1}
    assert access_widths(code, "STG") == {8: 1}
    assert access_widths("LDGSTS.E.BYPASS.LTC128B.128 [R9], [R2.64]; LDG.E R1, [R2]", "LDGSTS") == {16: 1}


def test_share_in_loops_reads_what_a_step_copies():
    copy = "cp.async.cg.shared.global [ %r1 + 0 ], [ %rd2 + 0 ], 0x10, %r3;\n"
    half = copy.replace("0x10", "0x8").replace(".cg", ".ca")
    loop = f"$L__BB0_2:\n{copy}{half}@%p1 bra $L__BB0_2;\n"
    assert share_in_loops(f"{2 * (copy + half)}@%p0 bra $L__BB0_3;\n{loop}$L__BB0_3:\nret;") == 1 / 3
    assert share_in_loops("ret;") == 0


def test_share_in_loops_takes_the_innermost_of_nested_ones():
    copy = "cp.async.cg.shared.global [ %r1 + 0 ], [ %rd2 + 0 ], 0x10, %r3;\n"
    inner = f"$L__BB0_3:\n{copy}@%p1 bra $L__BB0_3;\n"
    assert (
        share_in_loops(f"$L__BB0_2:\n{copy}{copy}{inner}{inner.replace('_3', '_4')}@%p2 bra $L__BB0_2;\nret;") == 1 / 2
    )


def test_masked_bytes_reads_what_only_some_threads_access():
    ttgir = """
    %4 = tt.load %3 : !tt.ptr<i64>
    %7 = tt.load %6 : tensor<4096x!tt.ptr<i16>, #blocked>
    %9 = tt.load %8, %7 evictionPolicy = evict_first : tensor<4096x!tt.ptr<i16>, #blocked>
    %10 = tt.load %8, %7, %cst_1 : tensor<16x4x!tt.ptr<f32>, #blocked>
    tt.store %12, %11 : tensor<128x!tt.ptr<i1>, #blocked>
    tt.store %12, %11, %10 : tensor<256x!tt.ptr<i1>, #blocked>
    """
    assert masked_bytes(ttgir, "load", 128) == 4096 / 128 * 2 + 4
    assert masked_bytes(ttgir, "store", 128) == 2


def test_scalar_widths_reads_what_a_program_accesses_once():
    ttgir = """
    %4 = tt.load %3 : !tt.ptr<i64>
    %5 = tt.load %2 : !tt.ptr<i64>
    %9 = tt.load %8, %7 : tensor<4096x!tt.ptr<i16>, #blocked>
    tt.store %12, %11 : !tt.ptr<i1>
    """
    assert scalar_widths(ttgir, "load") == {8: 2}
    assert scalar_widths(ttgir, "store") == {1: 1}


@pytest.mark.parametrize(
    ("widths", "scalars", "size"),
    [
        ({16: 8, 8: 4, 2: 64}, {8: 4}, 128),  # the narrow ones are of the tail, and of the table of tensors
        ({32: 2, 16: 1}, {}, 80),
        ({8: 9, 4: 2, 2: 16}, {8: 9, 4: 1}, 36),
        ({8: 1}, {8: 2}, 0),  # the compiler merged two
        ({}, {}, 0),
    ],
)
def test_bytes_for_elements(widths: dict[int, int], scalars: dict[int, int], size: int):
    assert bytes_for_elements(widths, scalars) == size


@pytest.mark.parametrize(
    "fault",
    [
        {"stack": 8},
        {"local": 4},
        {"loads": {4: 16}},
        {"narrow": 16.0},
        {"read": 8.0},
        {"written": 4.0},
        {"copied": 2048.0},
    ],
    ids=str,
)
def test_a_costly_kernel_is_seen(fault: dict[str, Any]):
    assert_costs([CHEAP])
    with pytest.raises(AssertionError, match="subtract_kernel"):
        assert_costs([dataclasses.replace(CHEAP, **fault)])


def test_command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    unknown = dataclasses.replace(CHEAP, reads=None, writes=None, copies=None)
    asked = []
    monkeypatch.setattr(aot, "measure", lambda *arguments: asked.append(arguments) or [CHEAP, unknown])
    aot.main([])
    aot.main(["--arch", "80", "90", "--sample", "--operator", "patch"])
    assert asked == [(ARCHITECTURES, False, OPERATORS), ([80, 90], True, ["patch"])]
    header, line, other, *_ = capsys.readouterr().out.splitlines()
    assert header.split()[:5] == ["operator", "kernel", "for", "arch", "regs"]
    cells = ["subtract", "subtract_kernel", "8 bit", "90", "24", "0", "0", "512", "5x16B 16x4B", "2x16B", "1x16B 16x1B"]
    assert re.split("  +", line) == [*cells, "5 (5)", "1 (1)", "1024 (1024)"]
    assert re.split("  +", other) == [*cells, "–", "–", "–"]
