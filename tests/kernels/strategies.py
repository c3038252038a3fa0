"""Tensors to try the operators on: every dtype, shape, memory layout and special value that they promise to take."""

from __future__ import annotations

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from rlforget_kernels.common.bits import as_bits, bits_dtype

THOROUGH = settings.get_current_profile_name() == "thorough"
"""Whether this is the slow suite, which tries every combination for which something has to be compiled."""

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2, torch.float64)
INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.bool)
DTYPES = FLOATS + INTEGERS

_FEW = (torch.float32, torch.bfloat16, torch.float64, torch.int32, torch.bool)
OPCHECK_DTYPES = tuple(dtype for dtype in DTYPES if THOROUGH and not str(dtype).startswith("torch.float8")) or _FEW
"""What torch's opcheck can make test values of: it multiplies, and torch has no float8 product on a CPU."""

DENSITIES = (0.0, 0.001, 0.1, 0.9, 1.0)
LAYOUTS = ("contiguous", "unaligned", "transposed", "strided")

dtypes = st.sampled_from(DTYPES)
densities = st.sampled_from(DENSITIES)
seeds = st.integers(0, 2**32 - 1)
# 0-d, empty, around the edges of vectors and tiles, and several dimensions.
shapes = st.one_of(
    st.sampled_from([(), (0,), (1,), (63,), (64,), (65,), (1000,), (1024,), (2049,), (8192,), (8193,), (0, 3), (1, 1)]),
    st.tuples(st.integers(0, 3000)),
    st.tuples(st.integers(1, 70), st.integers(1, 70)),
    st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(1, 12)),
)


def generator(seed: int) -> torch.Generator:
    """A generator of its own for one tensor."""
    return torch.Generator().manual_seed(seed)


def random_tensor(dtype: torch.dtype, shape: tuple[int, ...], seed: int) -> Tensor:
    """Uniform bits, so every exponent and NaN payload, mixed with ordinary values, zeros of both signs, infinities."""
    random = generator(seed)
    if dtype is torch.bool:
        return torch.randint(0, 2, shape, generator=random).bool()
    integer = bits_dtype(dtype)
    info = torch.iinfo(integer)
    bits = torch.randint(info.min, info.max, shape, generator=random, dtype=integer)
    if not dtype.is_floating_point:
        return bits.view(dtype)
    ordinary = torch.randn(shape, generator=random).to(dtype).view(integer)
    special = torch.tensor([0.0, -0.0, float("inf"), float("-inf"), float("nan")]).to(dtype).view(integer)
    special = special[torch.randint(0, len(special), shape, generator=random)]
    kind = torch.rand(shape, generator=random)
    return torch.where(kind < 0.3, bits, torch.where(kind < 0.9, ordinary, special)).view(dtype)


def changed_copy(tensor: Tensor, density: float, seed: int) -> Tensor:
    """A contiguous copy in which about `density` of the elements have other bits: neighbours, other signs, any."""
    random = generator(seed)
    bits = as_bits(tensor).clone()
    chosen = torch.rand(bits.shape, generator=random) < density
    flips = torch.randint(1, 128, bits.shape, generator=random, dtype=bits.dtype)
    flips = torch.where(torch.rand(bits.shape, generator=random) < 0.5, 1, flips)
    sign = torch.iinfo(bits.dtype).min
    flips = torch.where(torch.rand(bits.shape, generator=random) < 0.2, sign, flips).to(bits.dtype)
    if tensor.dtype is torch.bool:
        flips = torch.ones_like(bits)
    return torch.where(chosen, bits ^ flips, bits).view(tensor.dtype).view(tensor.shape)


def laid_out(tensor: Tensor, layout: str) -> Tensor:
    """The values of `tensor` in other memory: at an odd address, in column-major order, or with gaps."""
    bits = tensor.view(bits_dtype(tensor.dtype))
    if layout == "unaligned":
        held = torch.zeros(bits.numel() + 1, dtype=bits.dtype)[1:].view(bits.shape)
    elif layout == "transposed":
        held = torch.zeros(bits.shape[::-1], dtype=bits.dtype).permute(tuple(reversed(range(bits.dim()))))
    elif layout == "strided":
        held = torch.zeros((*bits.shape, 3), dtype=bits.dtype)[..., 1]
    else:
        held = torch.zeros(bits.shape, dtype=bits.dtype)
    held.copy_(bits)
    return held.view(tensor.dtype)


@st.composite
def tensors(draw: st.DrawFn, dtypes: st.SearchStrategy[torch.dtype] = dtypes) -> Tensor:
    """One tensor."""
    tensor = random_tensor(draw(dtypes), draw(shapes), draw(seeds))
    return laid_out(tensor, draw(st.sampled_from(LAYOUTS)))


@st.composite
def pairs(draw: st.DrawFn, dtypes: st.SearchStrategy[torch.dtype] = dtypes) -> tuple[Tensor, Tensor]:
    """A tensor before and after a change, in layouts of their own."""
    before = random_tensor(draw(dtypes), draw(shapes), draw(seeds))
    after = changed_copy(before, draw(densities), draw(seeds))
    layouts = st.sampled_from(LAYOUTS)
    return laid_out(before, draw(layouts)), laid_out(after, draw(layouts))


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors agree in dtype, shape and every stored bit."""
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(as_bits(one), as_bits(other))
