"""What a compiled kernel's machine code does to global memory: instructions by width, and bytes an element."""

from __future__ import annotations

import bisect
import itertools
import math
import re
import struct
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

WIDE = 16
"""Bytes a thread of a load or store that streams, at least."""

_WIDTHS = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16, "256": 32}
_TARGET = re.compile(r"^\.target sm_(\w+)", re.MULTILINE)


def disassemble(compiled: Sequence[Any]) -> list[str]:
    """Return the instructions of each of Triton's compiled kernels, all for one architecture.

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


def resource_usage(cubin: bytes) -> dict[str, int]:
    """Return the registers (REG) a thread, and its bytes of stack (STACK) and of local memory (LOCAL)."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        usage = _run("cuobjdump", "-res-usage", file.name)
    return {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage)}


def access_widths(code: str, instruction: str) -> dict[int, int]:
    """Count in machine code the occurrences of a memory instruction by bytes a thread, widest first."""
    found: Counter[int] = Counter()
    for modifiers in re.findall(rf"\b{instruction}\b((?:\.\w+)*)", code):
        found[next((_WIDTHS[part] for part in modifiers.split(".") if part in _WIDTHS), 4)] += 1
    return dict(sorted(found.items(), reverse=True))


def bytes_in(widths: dict[int, int]) -> int:
    """Return the bytes that a thread moves in all accesses of these widths."""
    return sum(size * count for size, count in widths.items())


def share_in_loops(ptx: str) -> float:
    """Return the share that copies in innermost loops have of the bytes of all asynchronous copies to shared memory.

    Before a pipelined loop stand those for its first steps: how many depends on the architecture.

    Args:
        ptx: A kernel in PTX.
    """
    labels = {label[1]: label.start() for label in re.finditer(r"^(\$\w+):", ptx, re.MULTILINE)}
    ends: dict[int, int] = {}  # where the last jump back to a label stands
    for jump in re.finditer(r"\bbra(?:\.uni)?\s+(\$\w+);", ptx):
        if labels[jump[1]] < jump.start():
            ends[labels[jump[1]]] = jump.start()
    loops = [(start, stop) for start, stop in ends.items() if not any(start < inner < stop for inner in ends)]
    inside = total = 0
    for copy in re.finditer(r"\bcp\.async\.c[ag]\.\S+ \[.*?\], \[.*?\], (\w+)", ptx):
        size = int(copy[1], 0)
        total += size
        inside += size * any(start < copy.start() < stop for start, stop in loops)
    return inside / total if total else 0.0


def scalar_widths(ttgir: str, instruction: str) -> dict[int, int]:
    """Count in Triton's last own form the occurrences of "load" or "store" of one address a program, by bytes."""
    bits = re.findall(rf"\btt\.{instruction} .*: !tt\.ptr<[a-z]+(\d+)>", ttgir)
    return dict(Counter(max(int(width), 8) // 8 for width in bits))


def masked_bytes(ttgir: str, instruction: str, threads: int) -> float:
    """Return the bytes that a thread's "load"s or "store"s move under a mask, by Triton's last own form.

    Args:
        ttgir: A kernel in that form.
        instruction: "load" or "store".
        threads: Those of a program. An element is moved by one of them at least, and each moves one at least.
    """
    operands = {"load": 1, "store": 2}[instruction]
    moved = 0.0
    for listed, shape, width in re.findall(rf"\btt\.{instruction} (.*) : tensor<([\dx]+)x!tt\.ptr<[a-z]+(\d+)>", ttgir):
        if listed.count("%") > operands:
            elements = math.prod(map(int, shape.split("x")))
            moved += max(elements / threads, 1) * max(int(width), 8) / 8
    return moved


def bytes_for_elements(widths: dict[int, int], scalars: dict[int, int]) -> int:
    """Return the bytes that a thread moves for the elements of its program's tile.

    Where there are accesses of `WIDE` bytes, they alone serve a full tile, and the narrower ones the tile at the end.

    Args:
        widths: Accesses in the machine code by bytes.
        scalars: Those among them that every thread does at one and the same address, which serve no element.
    """
    wide = {size: count for size, count in widths.items() if size >= WIDE}
    for_elements = wide or {size: max(0, count - scalars.get(size, 0)) for size, count in widths.items()}
    return bytes_in(for_elements)


def _run(tool: str, *arguments: str | Path) -> str:
    """Return what a tool of the triton wheel prints."""
    import triton

    path = Path(triton.__file__).with_name("backends") / "nvidia" / "bin" / tool
    return subprocess.run([path, *arguments], check=True, capture_output=True, text=True).stdout
