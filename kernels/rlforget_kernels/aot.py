"""Compile every Triton kernel without a GPU and read, from the machine code, what it costs.

    python -m rlforget_kernels.aot --arch 80 90 100

prints a table: registers, stack and local memory (both 0 unless registers spill), shared memory, and how many global
loads and stores there are of each width. A kernel is compiled as Triton would for tensors that start at 16 bytes.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rlforget_kernels import OPERATORS
from rlforget_kernels.common.launch import KernelSpec

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


def specs(sample: bool = False) -> Iterator[tuple[str, KernelSpec]]:
    """Yield every operator's name with each compilation that its `gpu.py` lists, or the first of each kernel."""
    for operator in OPERATORS:
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


def measure(architectures: Sequence[int], sample: bool = False) -> list[Report]:
    """Compile every kernel for the compute capabilities `architectures` and read its costs from the machine code.

    Args:
        architectures: Compute capabilities, times ten.
        sample: Whether one compilation of each kernel is enough.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        # Reading takes as long as compiling; it is left to processes that run beside the next compilation.
        reports = [
            pool.submit(read, operator, spec, arch, compile_spec(spec, arch))
            for operator, spec in specs(sample)
            for arch in architectures
        ]
        return [report.result() for report in reports]


def read(operator: str, spec: KernelSpec, arch: int, compiled: Any) -> Report:
    """Read the costs of the kernel that `compile_spec` returned."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernel.cubin")
        cubin.write_bytes(compiled.asm["cubin"])
        usage = _run("cuobjdump", "-res-usage", cubin)
        code = _run("nvdisasm", "--print-code", "--no-dataflow", cubin)
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
    parser.add_argument("--arch", type=int, nargs="+", default=list(ARCHITECTURES), help="10 x capability")
    parser.add_argument("--sample", action="store_true", help="one compilation of each kernel")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(arguments)
    reports = measure(options.arch, options.sample)
    text = json.dumps([dataclasses.asdict(report) for report in reports]) if options.json else table(reports)
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
