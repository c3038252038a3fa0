"""Compile every Triton kernel without a GPU and read, from the machine code, what it costs.

    python -m rlforget_kernels.aot --arch 80 90 100

compiles each kernel in the launch setting of each architecture, as Triton would for tensors that start at 16 bytes, and
one form of it for others, and prints a table: registers, stack and local memory (both 0 unless registers spill), shared
memory, how many global loads, asynchronous copies to shared memory and stores there are of each width, the bytes that
an element of a full tile costs in loads and stores, and those that a step of a pipelined loop copies, each beside the
fewest that the operator can do with (`KernelSpec.reads`, `writes` and `copies`).
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import math
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from rlforget_kernels import OPERATORS
from rlforget_kernels.common.launch import KernelSpec
from rlforget_kernels.common.machine_code import (
    WIDE,
    access_widths,
    bytes_for_elements,
    bytes_in,
    disassemble,
    masked_bytes,
    resource_usage,
    scalar_widths,
    share_in_loops,
)

ARCHITECTURES = (80, 90, 100)
"""Compute capabilities (times ten): A100, H100 and H200, B200."""


@dataclasses.dataclass(frozen=True)
class Report:
    """What one compiled kernel costs.

    Attributes:
        operator: The operator's package.
        kernel: The function.
        label: The compilation's label, see `KernelSpec`.
        arch: The compute capability, times ten.
        streams: Whether the kernel must load 16 bytes at a time.
        registers: Registers a thread.
        stack: Bytes of stack a thread; spilled registers live there.
        spills: Bytes of stack that are put up with.
        local: Bytes of local memory a thread.
        shared: Bytes of shared memory a program.
        loads: Instructions that load from global memory, by bytes a thread.
        ahead: Instructions that copy from global to shared memory, by bytes a thread.
        stores: Instructions that store to global memory, by bytes a thread.
        narrow: Bytes that a thread loads less than 16 at a time, beside what is loaded under a mask, as the tile at the
            end is, and what serves no element.
        read: Bytes loaded an element of a full tile.
        written: Bytes stored an element of a full tile.
        reads: The fewest bytes to load, None where the operator tells none.
        writes: The fewest bytes to store, likewise.
        copied: Bytes that a program copies ahead for a step of its loop.
        copies: The fewest of these, None where the operator tells none.
    """

    operator: str
    kernel: str
    label: str
    arch: int
    streams: bool
    registers: int
    stack: int
    spills: int
    local: int
    shared: int
    loads: dict[int, int]
    ahead: dict[int, int]
    stores: dict[int, int]
    narrow: float
    read: float
    written: float
    reads: float | None
    writes: float | None
    copied: float
    copies: int | None


def specs(sample: bool = False, operators: Sequence[str] = OPERATORS) -> Iterator[tuple[str, KernelSpec]]:
    """Yield each operator's name with every compilation that its `gpu.py` lists.

    Args:
        sample: Whether of each kernel the first that streams and the first that does not are enough.
        operators: The packages whose kernels to yield.
    """
    for operator in operators:
        seen = set()
        for spec in importlib.import_module(f"rlforget_kernels.{operator}.gpu").KERNELS:
            if not (sample and (spec.kernel, spec.streams) in seen):
                yield operator, spec
            seen.add((spec.kernel, spec.streams))


def compile_spec(spec: KernelSpec, arch: int) -> Any:
    """Compile `spec` for the compute capability `arch`; return Triton's compiled kernel.

    Raises:
        RuntimeError: if Triton is interpreting, which leaves nothing to compile.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    if triton.knobs.runtime.interpret:
        raise RuntimeError("aot: expected Triton to compile; found TRITON_INTERPRET set. Unset it.")
    names = spec.kernel.arg_names
    signature = {name: spec.signature.get(name, "constexpr") for name in names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if signature[name].startswith("*")}
    source = ASTSource(spec.kernel, signature=signature, constexprs=dict(spec.constexprs), attrs=aligned)
    options = {"num_warps": spec.warps, "num_stages": spec.stages, "enable_fp_fusion": False}
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def measure(architectures: Sequence[int], sample: bool = False, operators: Sequence[str] = OPERATORS) -> list[Report]:
    """Compile kernels for the compute capabilities `architectures` and read their costs from the machine code.

    Args:
        architectures: Compute capabilities, times ten.
        sample: See `specs`.
        operators: The packages whose kernels to compile.
    """
    reports = []
    for arch in architectures:
        listed = [(operator, spec.on(arch)) for operator, spec in specs(sample, operators)]
        compiled = [compile_spec(spec, arch) for _, spec in listed]
        for (operator, spec), kernel, code in zip(listed, compiled, disassemble(compiled), strict=True):
            reports.append(_report(operator, spec, arch, kernel, code))
    return reports


def _report(operator: str, spec: KernelSpec, arch: int, compiled: Any, code: str) -> Report:
    used = resource_usage(compiled.asm["cubin"])
    loads, ahead, stores = (access_widths(code, instruction) for instruction in ("LDG", "LDGSTS", "STG"))
    narrow, ttgir = {size: count for size, count in loads.items() if size < WIDE}, compiled.asm["ttgir"]
    scalars = {kind: scalar_widths(ttgir, kind) for kind in ("load", "store")}
    reads, writes = spec.fewest()
    # A tile's elements are spread over the threads of a program.
    threads = 32 * spec.warps
    share = threads / (spec.constexprs.get(spec.tile, math.nan) * spec.unrolled)
    return Report(
        operator=operator,
        kernel=spec.kernel.__name__,
        label=spec.label,
        arch=arch,
        streams=spec.streams,
        registers=used["REG"],
        stack=used["STACK"],
        spills=spec.spills,
        local=used["LOCAL"],
        shared=compiled.metadata.shared,
        loads=loads,
        ahead=ahead,
        stores=stores,
        narrow=max(0, bytes_in(narrow) - bytes_in(scalars["load"]) - masked_bytes(ttgir, "load", threads)),
        read=bytes_for_elements(loads, scalars["load"]) * share,
        written=bytes_for_elements(stores, scalars["store"]) * share,
        reads=reads,
        writes=writes,
        copied=bytes_in(ahead) * threads * share_in_loops(compiled.asm["ptx"]),
        copies=spec.copies,
    )


def table(reports: list[Report]) -> str:
    """Lay `reports` out for people, one line a compilation."""
    numbers = ["arch", "regs", "stack", "local", "shared"]
    rows = [["operator", "kernel", "for", *numbers, "loads", "ahead", "stores"]]
    rows[0] += ["read B/elt (least)", "written (least)", "copied B/step (least)"]
    for report in reports:
        values = (report.arch, report.registers, report.stack, report.local, report.shared)
        accesses = (report.loads, report.ahead, report.stores)
        widths = [" ".join(f"{n}x{size}B" for size, n in sizes.items()) or "–" for sizes in accesses]
        pairs = ((report.read, report.reads), (report.written, report.writes), (report.copied, report.copies))
        costs = [_beside(*pair) for pair in pairs]
        rows.append([report.operator, report.kernel, report.label, *map(str, values), *widths, *costs])
    columns = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, columns)).rstrip() for row in rows)


def _beside(found: float, least: float | None) -> str:
    return "–" if least is None else f"{found:g} ({least:g})"


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m rlforget_kernels.aot", description=__doc__.split("\n\n")[0])
    parser.add_argument("--arch", type=int, nargs="+", default=ARCHITECTURES, help="10 x capability")
    parser.add_argument("--sample", action="store_true", help="one or two compilations of each kernel")
    parser.add_argument("--operator", nargs="+", default=OPERATORS, choices=OPERATORS, metavar="NAME")
    options = parser.parse_args(arguments)
    sys.stdout.write(table(measure(options.arch, options.sample, options.operator)) + "\n")


if __name__ == "__main__":
    main()
