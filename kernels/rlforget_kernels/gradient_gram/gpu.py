"""`gradient_gram_` with Triton: products of positions that are multiplied and summed before they leave the registers,
or gradients of a block of the weight for all samples, then their Gram matrix.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from rlforget_kernels.common.launch import KernelSpec, launch
from rlforget_kernels.gradient_gram.blocks import add_by_blocks, chosen_form

_TILE = 64  # positions, samples or features of either side of a program's tile
_PAIRWISE_WARPS = 8
_STAGES = 2
_FEATURES = 512  # of either side of a block of the weight
_SLAB = 1 << 23  # entries of the gradients that are held: 32 MiB
_SUMS = 1 << 21  # entries of the partial Gram matrices: 16 MiB
_LANES = 16

DENSE, EQUAL, CHOICE = range(3)
"""How inputs meet: both dense; both tokens; tokens with dense ones."""


@dataclasses.dataclass(frozen=True)
class _Side:
    """The positions of some samples that count, those of sample a from starts[a] on.

    Attributes:
        inputs: x; or tokens, one a position.
        gradients: y.
        input_offsets: int64 [positions]: where a position's features start.
        gradient_offsets: Likewise.
        starts: int64 [samples + 1].
        ends: `starts`, on the host.
        sizes: Features of the inputs and of the gradients.
    """

    inputs: Tensor
    gradients: Tensor
    input_offsets: Tensor
    gradient_offsets: Tensor
    starts: Tensor
    ends: list[int]
    sizes: tuple[int, int]

    @property
    def samples(self) -> int:
        return len(self.ends) - 1

    @property
    def total(self) -> int:
        return self.ends[-1] - self.ends[0]

    @property
    def longest(self) -> int:
        return max(stop - start for start, stop in zip(self.ends, self.ends[1:], strict=False))

    @property
    def dense(self) -> bool:
        return self.inputs.is_floating_point()

    def part(self, start: int, stop: int) -> _Side:
        return dataclasses.replace(self, starts=self.starts[start : stop + 1], ends=self.ends[start : stop + 1])


def gradient_gram_(
    gram: Tensor,
    inputs: Tensor,
    gradients: Tensor,
    mask: Tensor | None = None,
    other_inputs: Tensor | None = None,
    other_gradients: Tensor | None = None,
    other_mask: Tensor | None = None,
    form: str = "auto",
) -> None:
    """See `rlforget_kernels.gradient_gram`."""
    rows, columns = _side(inputs, gradients, mask), None
    if other_inputs is not None and other_gradients is not None:
        columns = _side(other_inputs, other_gradients, other_mask)
    add_by_blocks(gram, rows, columns, lambda sides: _product(sides, form))


def _side(inputs: Tensor, gradients: Tensor, mask: Tensor | None) -> _Side:
    samples, length = gradients.shape[:2]
    device = gradients.device
    if mask is None:
        sample = torch.arange(samples, device=device).repeat_interleave(length)
        position = torch.arange(length, device=device).repeat(samples)
        ends = [length * a for a in range(samples + 1)]
        starts = torch.arange(samples + 1, device=device) * length
    else:
        sample, position = mask.nonzero(as_tuple=True)
        starts = torch.zeros(samples + 1, dtype=torch.int64, device=device)
        starts[1:] = mask.sum(1).cumsum(0)
        ends = starts.tolist()
    x, y = (_side_by_side(tensor.detach()) for tensor in (inputs, gradients))
    x_offsets, y_offsets = (sample * tensor.stride(0) + position * tensor.stride(1) for tensor in (x, y))
    sizes = (x.shape[2] if x.dim() == 3 else 1, y.shape[2])
    return _Side(x, y, x_offsets, y_offsets, starts, ends, sizes)


def _side_by_side(tensor: Tensor) -> Tensor:
    return tensor.contiguous() if tensor.dim() == 3 and tensor.stride(2) != 1 else tensor


def _product(sides: tuple[_Side, ...], form: str) -> Tensor:
    """Return the inner products of one side's samples, of which the lower half counts, or those of two sides."""
    first, last = sides[0], sides[-1]
    if 0 in (first.total, last.total, *first.sizes):
        return first.gradients.new_zeros((first.samples, last.samples), dtype=torch.float64)
    if not first.dense or chosen_form(sides, form) == "pairwise":
        return _pairwise(first, last, symmetric=len(sides) == 1)
    return _explicit(sides)


def _pairwise(first: _Side, last: _Side, *, symmetric: bool) -> Tensor:
    sums = first.gradients.new_zeros((first.samples, last.samples), dtype=torch.float64)
    constants = _pairwise_constexprs(
        DENSE if first.dense else CHOICE if last.dense else EQUAL,
        max(first.longest, last.longest),
        align=_align(first, last),
        wide_inputs=_wide(first.inputs, last.inputs),
        wide_gradients=_wide(first.gradients, last.gradients),
        symmetric=symmetric,
    )
    rows, columns = (_slots(side, constants["LENGTH"]) for side in (first, last))
    launch(
        pairwise_kernel,
        rows[0].shape[0] * columns[0].shape[0],
        first.inputs,
        rows[0],
        first.gradients,
        rows[1],
        rows[0].shape[1],
        last.inputs,
        columns[0],
        last.gradients,
        columns[1],
        columns[0].shape[1],
        columns[0].shape[0],
        *last.sizes,
        *sums.shape,
        sums,
        warps=_PAIRWISE_WARPS,
        stages=_STAGES,
        **constants,
    )
    return sums


def _slots(side: _Side, length: int) -> tuple[Tensor, Tensor]:
    """Lay positions out in tiles, `length` of each of TILE / length samples: where their x and y start, -1 for none.

    Returns:
        Two of int64 [groups of samples, tiles a group, TILE].
    """
    group = _TILE // length
    groups, tiles = triton.cdiv(side.samples, group), triton.cdiv(side.longest, length)
    first, last = side.ends[0], side.ends[-1]
    sample = torch.repeat_interleave(side.starts.diff(), output_size=last - first)
    at = torch.arange(first, last, device=sample.device) - side.starts[sample]
    slots = []
    for offsets in (side.input_offsets, side.gradient_offsets):
        padded = offsets.new_full((groups * group, tiles * length), -1)
        padded[sample, at] = offsets[first:last]
        slots.append(padded.view(groups, group, tiles, length).transpose(1, 2).reshape(groups, tiles, _TILE))
    return slots[0], slots[1]


def _wide(one: Tensor, other: Tensor) -> bool:
    """Whether products are of float32 and not of 16-bit floats, which the interpreter has none of."""
    return triton.knobs.runtime.interpret or one.dtype is not other.dtype or one.dtype is torch.float32


def _align(*sides: _Side) -> int:
    """Return 16 bytes' worth of features if every position's start at a multiple of them, and are one, else 1."""
    held = [tensor for side in sides for tensor in (side.inputs, side.gradients) if tensor.dim() == 3]
    vector = 16 // min(tensor.element_size() for tensor in held)
    ends = [(*tensor.stride()[:2], tensor.shape[2], tensor.data_ptr() // tensor.element_size()) for tensor in held]
    return vector if all(end % vector == 0 for tensor in ends for end in tensor) else 1


def _pairwise_constexprs(
    kind: int, longest: int, *, align: int, wide_inputs: bool, wide_gradients: bool, symmetric: bool
) -> dict[str, Any]:
    return {
        "KIND": kind,
        "LENGTH": min(max(triton.next_power_of_2(longest), 8), _TILE),
        "TILE": _TILE,
        "ALIGN": align,
        "WIDE_INPUTS": wide_inputs,
        "WIDE_GRADIENTS": wide_gradients,
        "SYMMETRIC": symmetric,
    }


@triton.jit
def _dot(left, right, total, WIDE: tl.constexpr):
    """total + left · right."""
    if WIDE:
        return tl.dot(left.to(tl.float32), right.to(tl.float32), total, input_precision="tf32x3")
    else:
        return tl.dot(left, right, total)


@triton.jit
def _position_products(
    left_ptr, left_slots, right_ptr, right_slots, features, TILE: tl.constexpr, WIDE: tl.constexpr, ALIGN: tl.constexpr
):
    """Inner products of the positions of two tiles, 0 where there is none: [TILE, TILE]."""
    DEPTH: tl.constexpr = 16 if WIDE else 32
    features = features // ALIGN * ALIGN  # which it is: tells the compiler that masks leave loads wide
    left = tl.load(left_slots + tl.arange(0, TILE))[:, None]
    right = tl.load(right_slots + tl.arange(0, TILE))[None, :]
    left_inside, right_inside = left >= 0, right >= 0
    left, right = tl.multiple_of(left, (ALIGN, ALIGN)), tl.multiple_of(right, (ALIGN, ALIGN))
    total = tl.zeros([TILE, TILE], tl.float32)
    for start in range(0, features, DEPTH):
        k = start + tl.arange(0, DEPTH)  # [DEPTH]
        inside = k < features
        a = tl.load(left_ptr + left + k[None, :], mask=left_inside & inside[None, :], other=0)
        b = tl.load(right_ptr + right + k[:, None], mask=right_inside & inside[:, None], other=0)
        total = _dot(a, b, total, WIDE)
    return total


@triton.jit
def _token_products(left_ptr, left_slots, right_ptr, right_slots, TILE: tl.constexpr, CHOICE: tl.constexpr):
    """The same where the left side is of tokens, and the right one too unless CHOICE."""
    left = tl.load(left_slots + tl.arange(0, TILE))  # [TILE]
    right = tl.load(right_slots + tl.arange(0, TILE))
    token = tl.load(left_ptr + left, mask=left >= 0, other=0)
    inside = (left >= 0)[:, None] & (right >= 0)[None, :]
    if CHOICE:
        return tl.load(right_ptr + right[None, :] + token[:, None], mask=inside, other=0).to(tl.float32)
    else:
        other = tl.load(right_ptr + right, mask=right >= 0, other=0)
        return ((token[:, None] == other[None, :]) & inside).to(tl.float32)


@triton.jit
def pairwise_kernel(
    x_ptr,  # inputs of the samples of the rows
    x_slots_ptr,  # int64 [groups, tiles, TILE]: where the features of each position start, see `_slots`
    y_ptr,  # gradients
    y_slots_ptr,
    tiles,
    other_x_ptr,  # the same of the samples of the columns
    other_x_slots_ptr,
    other_y_ptr,
    other_y_slots_ptr,
    other_tiles,
    other_groups,
    x_features,
    y_features,
    samples,
    other_samples,
    sums_ptr,  # float64 [samples, other_samples]
    KIND: tl.constexpr,
    LENGTH: tl.constexpr,  # positions of a sample in a tile
    TILE: tl.constexpr,
    ALIGN: tl.constexpr,  # features that a position's offset is a multiple of
    WIDE_INPUTS: tl.constexpr,
    WIDE_GRADIENTS: tl.constexpr,
    SYMMETRIC: tl.constexpr,
):
    """Inner products of the gradients of TILE / LENGTH samples with those of as many."""
    GROUP: tl.constexpr = TILE // LENGTH
    row = (tl.program_id(0) // other_groups).to(tl.int64)
    column = (tl.program_id(0) % other_groups).to(tl.int64)
    if SYMMETRIC and column > row:
        return
    total = tl.zeros([GROUP, GROUP], tl.float64)
    for s in range(tiles):
        i = (row * tiles + s) * TILE
        for t in range(other_tiles):
            j = (column * other_tiles + t) * TILE
            y, other_y = y_slots_ptr + i, other_y_slots_ptr + j
            products = _position_products(y_ptr, y, other_y_ptr, other_y, y_features, TILE, WIDE_GRADIENTS, ALIGN)
            x, other_x = x_slots_ptr + i, other_x_slots_ptr + j
            if KIND == 0:
                products *= _position_products(x_ptr, x, other_x_ptr, other_x, x_features, TILE, WIDE_INPUTS, ALIGN)
            else:
                products *= _token_products(x_ptr, x, other_x_ptr, other_x, TILE, KIND == 2)
            part = tl.sum(tl.reshape(products, (GROUP, LENGTH, GROUP, LENGTH)), axis=3)
            total += tl.sum(part.to(tl.float64), axis=1)
    a = row * GROUP + tl.arange(0, GROUP)[:, None]
    b = column * GROUP + tl.arange(0, GROUP)[None, :]
    tl.store(sums_ptr + a * other_samples + b, total, mask=(a < samples) & (b < other_samples))


def _explicit(sides: tuple[_Side, ...]) -> Tensor:
    first, last = sides[0], sides[-1]
    fan_in, out = first.sizes
    counts = [triton.cdiv(side.samples, _TILE) * _TILE for side in sides]
    rows, columns = _block(out, fan_in, sum(counts))
    lanes = max(1, min(_LANES, _SUMS // (first.samples * last.samples), rows * columns // _TILE))
    sums = first.gradients.new_zeros((lanes, first.samples, last.samples), dtype=torch.float64)
    slab = first.gradients.new_zeros((sum(counts), rows * columns), dtype=torch.float32)
    for o in range(0, out, rows):
        for i in range(0, fan_in, columns):
            for side, start in zip(sides, (0, counts[0]), strict=False):
                _form(side, o, i, slab[start:], rows, columns)
            _add_gram(slab, counts[0] if len(sides) == 2 else 0, sums, symmetric=len(sides) == 1)
    return sums.sum(0)


def _block(out: int, fan_in: int, samples: int) -> tuple[int, int]:
    """Choose how much of the weight is held: near a square, for the inputs are read that many times less."""
    rows, columns = (min(triton.cdiv(size, _TILE), _FEATURES // _TILE) for size in (out, fan_in))
    tiles = max(1, _SLAB // (samples * _TILE**2))
    rows = min(rows, max(1, math.isqrt(tiles)))
    columns = min(columns, max(1, tiles // rows))
    return rows * _TILE, columns * _TILE


def _form(side: _Side, o: int, i: int, slab: Tensor, rows: int, columns: int) -> None:
    """Write the gradients of a block of the weight to `slab` [samples, rows · columns]."""
    fan_in, out = side.sizes
    tiles = (rows // _TILE, columns // _TILE)
    launch(
        form_kernel,
        side.samples * tiles[0] * tiles[1],
        side.inputs,
        side.input_offsets,
        side.gradients,
        side.gradient_offsets,
        side.starts,
        slab,
        i,
        fan_in,
        o,
        out,
        tiles[0],
        tiles[1],
        **_form_constexprs(_wide(side.inputs, side.gradients), _align(side)),
    )


def _form_constexprs(wide: bool, align: int) -> dict[str, Any]:
    return {"TILE": _TILE, "ALIGN": align, "WIDE": wide}


@triton.jit
def form_kernel(
    x_ptr,
    x_offsets_ptr,  # int64 [positions]
    y_ptr,
    y_offsets_ptr,
    starts_ptr,  # int64 [samples + 1]
    slab_ptr,  # float32 [samples, tiles_y, TILE, tiles_x, TILE]
    x_first,
    x_features,
    y_first,
    y_features,
    tiles_y,
    tiles_x,
    TILE: tl.constexpr,
    ALIGN: tl.constexpr,
    WIDE: tl.constexpr,
):
    """One tile of one sample's gradient."""
    DEPTH: tl.constexpr = 16 if WIDE else 32
    tile = tl.program_id(0) % (tiles_y * tiles_x)
    sample = (tl.program_id(0) // (tiles_y * tiles_x)).to(tl.int64)
    row = tile // tiles_x * TILE + tl.arange(0, TILE)  # [TILE], of the block
    column = tile % tiles_x * TILE + tl.arange(0, TILE)
    # All of them are multiples: that tells the compiler that masks leave loads wide.
    x_features, y_features = x_features // ALIGN * ALIGN, y_features // ALIGN * ALIGN
    o, i = y_first // TILE * TILE + row, x_first // TILE * TILE + column
    start, stop = tl.load(starts_ptr + sample), tl.load(starts_ptr + sample + 1)
    total = tl.zeros([TILE, TILE], tl.float32)
    for first in range(start, stop, DEPTH):
        t = first + tl.arange(0, DEPTH)  # [DEPTH]
        inside = t < stop
        xs = tl.load(x_offsets_ptr + t, mask=inside, other=0)[:, None]
        ys = tl.load(y_offsets_ptr + t, mask=inside, other=0)[:, None]
        xs, ys = tl.multiple_of(xs, (ALIGN, ALIGN)), tl.multiple_of(ys, (ALIGN, ALIGN))
        x = tl.load(x_ptr + xs + i[None, :], mask=inside[:, None] & (i < x_features)[None, :], other=0)
        y = tl.load(y_ptr + ys + o[None, :], mask=inside[:, None] & (o < y_features)[None, :], other=0)
        total = _dot(tl.trans(y), x, total, WIDE)
    target = slab_ptr + (sample * tiles_y * TILE + row[:, None]) * (tiles_x * TILE) + column[None, :]
    tl.store(target, total)


def _add_gram(slab: Tensor, offset: int, sums: Tensor, *, symmetric: bool) -> None:
    """Add to each of `sums` [lanes, n, m] its part of the Gram matrix of `slab`, whose m samples start at `offset`."""
    lanes, samples, other_samples = sums.shape
    across = triton.cdiv(other_samples, _TILE)
    tiles = triton.cdiv(samples, _TILE) * across
    length = triton.cdiv(slab.shape[1], lanes * _TILE) * _TILE
    launch(
        sum_kernel,
        tiles * lanes,
        slab,
        slab.shape[1],
        offset,
        length,
        samples,
        other_samples,
        tiles,
        across,
        sums,
        **_sum_constexprs(symmetric),
    )


def _sum_constexprs(symmetric: bool) -> dict[str, Any]:
    return {"TILE": _TILE, "SYMMETRIC": symmetric}


@triton.jit
def sum_kernel(
    slab_ptr,  # float32 [samples, width]
    width,
    offset,  # row of the slab that the first column of sums belongs to
    length,  # columns of the slab that one program sums over
    samples,
    other_samples,
    tiles,
    across,  # tiles of columns
    sums_ptr,  # float64 [lanes, samples, other_samples]
    TILE: tl.constexpr,
    SYMMETRIC: tl.constexpr,
):
    """Inner products of the gradients of TILE samples with those of TILE, over a part of their entries."""
    DEPTH: tl.constexpr = 16
    lane = (tl.program_id(0) // tiles).to(tl.int64)
    tile = tl.program_id(0) % tiles
    if SYMMETRIC and tile % across > tile // across:
        return
    a = tile // across * TILE + tl.arange(0, TILE)  # [TILE]
    b = tile % across * TILE + tl.arange(0, TILE)
    width = width // TILE * TILE  # which it is: tells the compiler that rows start where wide loads may
    length = length // TILE * TILE
    total = tl.zeros([TILE, TILE], tl.float32)
    for start in range(lane * length, tl.minimum((lane + 1) * length, width), DEPTH):
        k = start + tl.arange(0, DEPTH)  # [DEPTH]
        left = tl.load(slab_ptr + a[:, None].to(tl.int64) * width + k[None, :])
        right = tl.load(slab_ptr + (offset + b[None, :]).to(tl.int64) * width + k[:, None])
        total = tl.dot(left, right, total, input_precision="tf32x3")
    inside = (a[:, None] < samples) & (b[None, :] < other_samples)
    target = sums_ptr + (lane * samples + a[:, None]) * other_samples + b[None, :]
    tl.store(target, tl.load(target, mask=inside, other=0) + total.to(tl.float64), mask=inside)


def _specs() -> list[KernelSpec]:
    floats = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
    specs = []
    for dtype, pointer in floats.items():
        side = {"x_ptr": pointer, "x_offsets_ptr": "*i64", "y_ptr": pointer, "y_offsets_ptr": "*i64"}
        form = side | {"starts_ptr": "*i64", "slab_ptr": "*fp32"}
        form |= dict.fromkeys(("x_first", "x_features", "y_first", "y_features", "tiles_y", "tiles_x"), "i64")
        name, wide, align = str(dtype).removeprefix("torch."), dtype is torch.float32, 16 // dtype.itemsize
        specs.append(KernelSpec(form_kernel, name, form, _form_constexprs(wide, align)))
        for kind, inputs, other_inputs in (
            (DENSE, pointer, pointer),
            (EQUAL, "*i64", "*i64"),
            (CHOICE, "*i64", pointer),
        ):
            pair = {"x_ptr": inputs, "x_slots_ptr": "*i64", "y_ptr": pointer, "y_slots_ptr": "*i64", "tiles": "i64"}
            pair |= {f"other_{key}": value for key, value in pair.items()} | {"other_x_ptr": other_inputs}
            pair |= dict.fromkeys(("other_groups", "x_features", "y_features", "samples", "other_samples"), "i64")
            for longest in (8, _TILE):
                constants = _pairwise_constexprs(
                    kind, longest, align=align, wide_inputs=wide, wide_gradients=wide, symmetric=kind != CHOICE
                )
                label = f"{name} {('dense', 'tokens', 'tokens with dense')[kind]}, {longest} positions"
                pair["sums_ptr"] = "*fp64"
                # A step of each product's loop: features of two tiles of positions.
                copies = (2 if kind == DENSE else 1) * 2 * _TILE * (16 if wide else 32) * dtype.itemsize
                launched: dict[str, Any] = {"warps": _PAIRWISE_WARPS, "stages": _STAGES}
                specs.append(KernelSpec(pairwise_kernel, label, pair, constants, **launched, copies=copies))
                if kind == DENSE and longest == _TILE:
                    unaligned = constants | {"ALIGN": 1}
                    specs.append(KernelSpec(pairwise_kernel, f"{label}, unaligned", pair, unaligned, **launched))
    total = {"slab_ptr": "*fp32", "sums_ptr": "*fp64"}
    total |= dict.fromkeys(("width", "offset", "length", "samples", "other_samples", "tiles", "across"), "i64")
    specs.append(KernelSpec(sum_kernel, "float32", total, _sum_constexprs(True), copies=2 * _TILE * 16 * 4))
    return specs


KERNELS = _specs()
"""What is compiled ahead of time."""
