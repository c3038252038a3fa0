"""How Triton kernels are launched, and how they are described to the ahead-of-time compiler."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from rlforget_kernels.common.settings import STAGES, WARPS, Setting, Settings

Cost = float | Callable[[Setting], float] | None
"""Bytes an element, where they are known."""


def launch(kernel: Any, programs: int, *args: Any, warps: int = WARPS, stages: int = STAGES, **constexprs: Any) -> None:
    """Run `programs` programs of a Triton `kernel` on the device of its first tensor argument.

    Fused multiply-adds are off: they round once where the reference rounds twice.
    """
    if programs == 0:
        return
    first = next(arg for arg in args if isinstance(arg, Tensor))
    with torch.cuda.device_of(first):
        kernel[(programs,)](*args, **constexprs, num_warps=warps, num_stages=stages, enable_fp_fusion=False)


@dataclasses.dataclass(frozen=True)
class KernelSpec:
    """One compilation of a Triton kernel. An operator's `gpu.py` lists its own in `KERNELS`.

    Attributes:
        kernel: The `triton.jit` function.
        label: What tells this compilation from others of the kernel, e.g. "bfloat16".
        signature: Triton type of every argument that is no constexpr, e.g. {"before": "*i16", "count": "i64"}.
        constexprs: Value of every constexpr argument.
        warps: Warps a program.
        stages: Loads that the compiler may start ahead in a loop.
        streams: Whether the kernel reads whole tensors in order, and so must do it with 16-byte loads.
        reads: The fewest bytes to load an element. Where the kernel has loads of 16 bytes, by those alone: the narrower
            ones serve the tile at the end. What a program loads once, from one address, counts for no element.
        writes: The fewest bytes to store an element, counted likewise. Either may follow from the launch setting.
        copies: The fewest bytes that a program of a pipelined loop copies ahead, to shared memory, for each of its
            steps. Such copies are no loads of `reads`.
        tile: The constexpr that says how many elements those loads and stores serve.
        spills: Bytes of stack a thread that are put up with. 0, but where a line beside the compilation says why.
        unrolled: How many tiles they serve, where the compiler unrolls a loop over tiles.
        settings: Where the table of settings gives this compilation's BLOCK, warps and stages, its operator.
        size: Bytes of the element that the table is asked for.
    """

    kernel: Any
    label: str
    signature: Mapping[str, str]
    constexprs: Mapping[str, Any]
    warps: int = WARPS
    stages: int = STAGES
    streams: bool = False
    reads: Cost = None
    writes: Cost = None
    copies: int | None = None
    spills: int = 0
    tile: str = "BLOCK"
    unrolled: int = 1
    settings: Settings | None = None
    size: int = 0

    def on(self, architecture: int) -> KernelSpec:
        """Return the compilation with the launch setting that a device of `architecture` takes."""
        if self.settings is None:
            return self
        setting = self.settings.at(self.size, architecture)
        constexprs = {**self.constexprs, "BLOCK": setting.block}
        return dataclasses.replace(self, constexprs=constexprs, warps=setting.warps, stages=setting.stages)

    def unaligned(self) -> KernelSpec:
        """Return the compilation for tensors of which one starts at no multiple of 16 bytes: nothing streams there."""
        constexprs = {**self.constexprs, "ALIGNED": False}
        label = f"{self.label} unaligned"
        return dataclasses.replace(self, label=label, constexprs=constexprs, streams=False, reads=None, writes=None)

    def fewest(self) -> tuple[float | None, float | None]:
        """Return `reads` and `writes` as they are in the launch setting of this compilation."""
        setting = Setting(self.constexprs.get(self.tile, 0), self.warps, self.stages)
        reads, writes = (cost(setting) if callable(cost) else cost for cost in (self.reads, self.writes))
        return reads, writes
