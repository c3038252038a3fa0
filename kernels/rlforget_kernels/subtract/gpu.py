"""`subtract_` with Triton."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from rlforget_kernels.common.arithmetic_gpu import narrowed_bits, result_bits64
from rlforget_kernels.common.bits import BITS_DTYPE, as_bits, write_back
from rlforget_kernels.common.gpu_math import widen
from rlforget_kernels.common.hashing import mix64_int, signed
from rlforget_kernels.common.launch import KernelSpec, launch
from rlforget_kernels.common.rounding import FLOAT_FORMAT
from rlforget_kernels.common.settings import Settings
from rlforget_kernels.common.tables import TRITON_TYPE, find_tile, number_at, pointer_at, table_constexprs, tables
from rlforget_kernels.common.tunable import Tunable

# Sixteen elements a thread: one load of 16 bytes of the narrowest weights, and registers for their random words.
_SETTINGS = Settings("subtract")


def foreach_subtract_(weights: list[Tensor], us: list[Tensor], seed: int | None, offsets: Sequence[int]) -> None:
    """See `rlforget_kernels.subtract`."""
    bits = [as_bits(weight) for weight in weights]
    changes = [as_bits(u).view(torch.float32) for u in us]
    firsts = [signed(offset) for offset in offsets]
    mixed_seed = signed(mix64_int((seed or 0) % 2**64))
    blocks = _SETTINGS.blocks(bits[0].device)
    for table in tables((bits, changes), blocks, [firsts], kinds=[weight.dtype for weight in weights]):
        setting = _SETTINGS.on(bits[table.members[0]])
        constexprs = table.constexprs | _constexprs(table.kind, seed is not None)
        arguments = (table.rows, table.owners, mixed_seed)
        launch(subtract_kernel, table.tiles, *arguments, **constexprs, **setting.launched)
    for weight, one in zip(weights, bits, strict=True):
        write_back(weight, one)


def _constexprs(dtype: torch.dtype, stochastic: bool) -> dict[str, Any]:
    layout = FLOAT_FORMAT.get(dtype, FLOAT_FORMAT[torch.float32])
    return {
        "TYPE": TRITON_TYPE[BITS_DTYPE[dtype.itemsize]],
        "EXPONENT": layout.exponent,
        "MANTISSA": layout.mantissa,
        "OVERFLOW": layout.overflow,
        "NAN_CODE": layout.nan,
        "STOCHASTIC": stochastic and dtype.itemsize < 4,
        "FLOAT64": dtype is torch.float64,
    }


@triton.jit
def subtract_kernel(
    rows_ptr,  # addresses of the weight's bits and of u, and the weight's offset
    owners_ptr,
    mixed_seed,
    COLUMNS: tl.constexpr,
    ALIGNED: tl.constexpr,
    TYPE: tl.constexpr,
    EXPONENT: tl.constexpr,
    MANTISSA: tl.constexpr,
    OVERFLOW: tl.constexpr,
    NAN_CODE: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    FLOAT64: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Subtract one tile."""
    tile = tl.program_id(0).to(tl.int64)
    row_ptr, base, numel = find_tile(rows_ptr, owners_ptr, tile, COLUMNS, BLOCK)
    bits_ptr = pointer_at(row_ptr, 0, TYPE, ALIGNED) + base
    u_ptr = pointer_at(row_ptr, 1, tl.float32, ALIGNED) + base
    first = number_at(row_ptr, 2) + base
    offset = tl.arange(0, BLOCK)  # [BLOCK]
    if base + BLOCK <= numel:
        bits, u = tl.load(bits_ptr + offset), tl.load(u_ptr + offset)
        new = _difference(
            bits, u, mixed_seed, first, EXPONENT, MANTISSA, OVERFLOW, NAN_CODE, STOCHASTIC, FLOAT64, BLOCK
        )
        tl.store(bits_ptr + offset, new)
    else:
        inside = offset < numel - base
        bits, u = tl.load(bits_ptr + offset, mask=inside), tl.load(u_ptr + offset, mask=inside)
        new = _difference(
            bits, u, mixed_seed, first, EXPONENT, MANTISSA, OVERFLOW, NAN_CODE, STOCHASTIC, FLOAT64, BLOCK
        )
        tl.store(bits_ptr + offset, new, mask=inside)


@triton.jit
def _difference(
    bits,
    u,
    mixed_seed,
    first,
    EXPONENT: tl.constexpr,
    MANTISSA: tl.constexpr,
    OVERFLOW: tl.constexpr,
    NAN_CODE: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    FLOAT64: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The bits of the rounded difference [BLOCK]."""
    if FLOAT64:
        new = result_bits64(bits.to(tl.float64, bitcast=True) - u.to(tl.float64))
    else:
        CODE: tl.constexpr = (1 << (EXPONENT + MANTISSA + 1)) - 1
        difference = widen((bits.to(tl.int64) & CODE).to(tl.uint32), EXPONENT, MANTISSA) - u
        index = first + tl.arange(0, BLOCK)
        new = narrowed_bits(difference, index, mixed_seed, EXPONENT, MANTISSA, OVERFLOW, NAN_CODE, STOCHASTIC)
    return new.to(bits.dtype)


def _spec(dtype: torch.dtype, stochastic: bool) -> KernelSpec:
    return KernelSpec(
        subtract_kernel,
        f"{str(dtype).removeprefix('torch.')} {'stochastic' if stochastic else 'nearest'}",
        {"rows_ptr": "*i64", "owners_ptr": "*i32", "mixed_seed": "i64"},
        table_constexprs(3) | _constexprs(dtype, stochastic),
        streams=True,
        reads=dtype.itemsize + 4,
        writes=dtype.itemsize,
        settings=_SETTINGS,
        size=dtype.itemsize,
    )


_NARROW = (torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2)

KERNELS = [_spec(dtype, False) for dtype in (torch.float64, torch.float32, torch.bfloat16)]
KERNELS += [_spec(dtype, True) for dtype in _NARROW]
KERNELS += [_spec(torch.bfloat16, True).unaligned()]
"""What is compiled ahead of time."""


def _trial(size: int, elements: int, device: torch.device) -> Callable[[], object]:
    dtype = {1: torch.float8_e5m2, 2: torch.bfloat16, 4: torch.float32, 8: torch.float64}[size]
    weight, u = torch.zeros(elements, device=device).to(dtype), torch.zeros(elements, device=device)

    def call() -> Tensor:
        foreach_subtract_([weight], [u], 0, [0])
        return weight

    return call


TUNABLE = [Tunable(_SETTINGS, _trial, loads=(1, 2))]
"""What `rlforget_kernels.tune` measures."""
