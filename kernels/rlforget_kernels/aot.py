"""Compile every Triton kernel without a GPU and read, from the machine code, what it costs.

    python -m rlforget_kernels.aot --arch 80 90 100

prints a table: registers, stack and local memory (both 0 unless registers spill), shared memory, and how many global
loads and stores there are of each width. A kernel is compiled as Triton would for tensors that start at 16 bytes.
"""

from __future__ import annotations

import argparse
import bisect
import dataclasses
import importlib
import itertools
import re
import struct
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rlforget_kernels import OPERATORS
from rlforget_kernels.common.launch import KernelSpec

ARCHITECTURES = (80, 90, 100)
"""Compute capabilities (times ten): A100, H100 and H200, B200."""

_TARGET = re.compile(r"^\.target sm_(\w+)", re.MULTILINE)


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
        local: Bytes of local memory a thread.
        shared: Bytes of shared memory a program.
        loads: Instructions that load from global memory, by bytes a thread.
        stores: Instructions that store to global memory, by bytes a thread.
    """

    operator: str
    kernel: str
    label: str
    arch: int
    streams: bool
    registers: int
    stack: int
    local: int
    shared: int
    loads: dict[int, int]
    stores: dict[int, int]


def specs(sample: bool = False, operators: Sequence[str] = OPERATORS) -> Iterator[tuple[str, KernelSpec]]:
    """Yield each operator's name with every compilation that its `gpu.py` lists, or with the first of each kernel."""
    for operator in operators:
        seen = set()
        for spec in importlib.import_module(f"rlforget_kernels.{operator}.gpu").KERNELS:
            if not (sample and spec.kernel in seen):
                yield operator, spec
            seen.add(spec.kernel)


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
    options = {"num_warps": spec.warps, "enable_fp_fusion": False}
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def measure(architectures: Sequence[int], sample: bool = False, operators: Sequence[str] = OPERATORS) -> list[Report]:
    """Compile kernels for the compute capabilities `architectures` and read their costs from the machine code.

    Args:
        architectures: Compute capabilities, times ten.
        sample: Whether one compilation of each kernel is enough.
        operators: The packages whose kernels to compile.
    """
    reports = []
    for arch in architectures:
        listed = list(specs(sample, operators))
        compiled = [compile_spec(spec, arch) for _, spec in listed]
        for (operator, spec), kernel, code in zip(listed, compiled, disassemble(compiled), strict=True):
            reports.append(_report(operator, spec, arch, kernel, code))
    return reports


def _report(operator: str, spec: KernelSpec, arch: int, compiled: Any, code: str) -> Report:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(compiled.asm["cubin"])
        usage = _run("cuobjdump", "-res-usage", file.name)
    used = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage)}
    return Report(
        operator=operator,
        kernel=spec.kernel.__name__,
        label=spec.label,
        arch=arch,
        streams=spec.streams,
        registers=used["REG"],
        stack=used["STACK"],
        local=used["LOCAL"],
        shared=compiled.metadata.shared,
        loads=access_widths(code, "LDG"),
        stores=access_widths(code, "STG"),
    )


def disassemble(compiled: Sequence[Any]) -> list[str]:
    """Return the instructions of each of the kernels that `compile_spec` returned, all for one architecture.

    The disassembler takes longer to start than to read a kernel, so it reads all their instructions as one.
    """
    if not compiled:
        return []
    codes = [_instructions(kernel.asm["cubin"]) for kernel in compiled]
    # The full name, such as 90a: ask the kernel, for which names Triton chooses depends on its version.
    (name,) = {name for kernel in compiled for name in _TARGET.findall(kernel.asm["ptx"])}
    with tempfile.NamedTemporaryFile(suffix=".bin") as file:
        Path(file.name).write_bytes(b"".join(codes))
        text = _run("nvdisasm", "--binary", f"SM{name}", file.name)
    lines: list[list[str]] = [[] for _ in codes]
    ends = list(itertools.accumulate(map(len, codes)))
    for address, line in re.findall(r"^\s*/\*([0-9a-f]+)\*/(.*)$", text, re.MULTILINE):
        lines[bisect.bisect_right(ends, int(address, 16))].append(line)
    return ["\n".join(part) for part in lines]


def _instructions(cubin: bytes) -> bytes:
    """Return what the `.text` sections of a cubin hold, which is an ELF file of 64 bits."""
    (table,) = struct.unpack_from("<Q", cubin, 0x28)
    size, count, names = struct.unpack_from("<3H", cubin, 0x3A)
    # Of each section: where in the section of names its own is, and where it is in the file, from and how long.
    sections = [struct.unpack_from("<I20xQQ", cubin, table + k * size) for k in range(count)]
    start_of_names = sections[names][1]
    is_code = [cubin.startswith(b".text.", start_of_names + name) for name, _, _ in sections]
    return b"".join(
        cubin[start : start + length] for (_, start, length), code in zip(sections, is_code, strict=True) if code
    )


def access_widths(code: str, instruction: str) -> dict[int, int]:
    """Count in machine code the occurrences of a memory instruction by bytes a thread, widest first."""
    named = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16, "256": 32}
    found: Counter[int] = Counter()
    for modifiers in re.findall(rf"\b{instruction}\b((?:\.\w+)*)", code):
        found[next((named[part] for part in modifiers.split(".") if part in named), 4)] += 1
    return dict(sorted(found.items(), reverse=True))


def _run(tool: str, *arguments: str | Path) -> str:
    """Return what a tool of the triton wheel prints."""
    import triton

    path = Path(triton.__file__).with_name("backends") / "nvidia" / "bin" / tool
    return subprocess.run([path, *arguments], check=True, capture_output=True, text=True).stdout


def table(reports: list[Report]) -> str:
    """Lay `reports` out for people, one line a compilation."""
    header = ["operator", "kernel", "for", "arch", "regs", "stack", "local", "shared", "loads", "stores"]
    rows = [header]
    for report in reports:
        numbers = (report.arch, report.registers, report.stack, report.local, report.shared)
        widths = [" ".join(f"{n}x{size}B" for size, n in sides.items()) for sides in (report.loads, report.stores)]
        rows.append([report.operator, report.kernel, report.label, *map(str, numbers), *widths])
    columns = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, columns)).rstrip() for row in rows)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m rlforget_kernels.aot", description=__doc__.split("\n\n")[0])
    parser.add_argument("--arch", type=int, nargs="+", default=ARCHITECTURES, help="10 x capability")
    parser.add_argument("--sample", action="store_true", help="one compilation of each kernel")
    parser.add_argument("--operator", nargs="+", default=OPERATORS, choices=OPERATORS, metavar="NAME")
    options = parser.parse_args(arguments)
    sys.stdout.write(table(measure(options.arch, options.sample, options.operator)) + "\n")


if __name__ == "__main__":
    main()
