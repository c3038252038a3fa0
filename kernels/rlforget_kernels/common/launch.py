"""How Triton kernels are launched, and how they are described to the ahead-of-time compiler."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

WARPS = 4
STREAM_BLOCK: dict[int, int] = {size: WARPS * 32 * (16 // size) * 4 for size in (1, 2, 4, 8)}
"""Elements that one program of a streaming kernel takes, by element size: four 16-byte loads a thread."""


def launch(kernel: Any, programs: int, *args: Any, warps: int = WARPS, **constexprs: Any) -> None:
    """Run `programs` programs of a Triton `kernel` on the device of its first tensor argument.

    Fused multiply-adds are off: they round once where the reference rounds twice.
    """
    if programs == 0:
        return
    first = next(arg for arg in args if isinstance(arg, Tensor))
    with torch.cuda.device_of(first):
        kernel[(programs,)](*args, **constexprs, num_warps=warps, enable_fp_fusion=False)


@dataclasses.dataclass(frozen=True)
class KernelSpec:
    """One compilation of a Triton kernel. An operator's `gpu.py` lists its own in `KERNELS`.

    Attributes:
        kernel: The `triton.jit` function.
        label: What tells this compilation from others of the kernel, e.g. "bfloat16".
        signature: Triton type of every argument that is no constexpr, e.g. {"before": "*i16", "count": "i64"}.
        constexprs: Value of every constexpr argument.
        warps: Warps a program.
        streams: Whether the kernel reads whole tensors in order, and so must do it with 16-byte loads.
    """

    kernel: Any
    label: str
    signature: Mapping[str, str]
    constexprs: Mapping[str, Any]
    warps: int = WARPS
    streams: bool = False
