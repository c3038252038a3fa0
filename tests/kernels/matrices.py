"""Pairs of finite matrices before and after a change, and bases, for the operators on after − before."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from hypothesis import strategies as st
from torch import Tensor

from tests.kernels.strategies import FLOATS, LAYOUTS, THOROUGH, generator, laid_out, seeds

_CORNERS = [
    *((dtype, False) for dtype in (torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.float64)),
    *((dtype, True) for dtype in (torch.bfloat16, torch.float64)),
]
CPU_WORK = list(itertools.product(FLOATS, [False, True])) if THOROUGH else _CORNERS
"""Dtypes, and whether to compute in float64. On a CPU each takes seconds to compile: the test command leaves out what
differs from another in constants alone."""
CPU_DTYPES = [dtype for dtype, float64 in CPU_WORK if not float64]

layouts = st.sampled_from(LAYOUTS)
# Single rows and columns, around the edges of tiles and blocks, and what leaves tails in both.
small_shapes = st.one_of(
    st.sampled_from([(1, 1), (1, 70), (70, 1), (16, 16), (32, 64), (64, 32), (65, 33), (64, 128)]),
    st.tuples(st.integers(1, 80), st.integers(1, 80)),
)
shapes = st.one_of(
    small_shapes,
    st.sampled_from([(33, 1025), (31, 1023), (300, 257), (1, 5000), (5000, 1), (600, 2100)]),
)
ranks = st.sampled_from([1, 3, 15, 16, 17, 32, 33, 64, 100, 256])


def pair(dtype: torch.dtype, shape: tuple[int, int], seed: int, change: float = 0.01) -> tuple[Tensor, Tensor]:
    """Normal weights before and after a normal change of standard deviation `change`."""
    random = generator(seed)
    before = torch.randn(shape, generator=random, dtype=torch.float64)
    after = before + change * torch.randn(shape, generator=random, dtype=torch.float64)
    return before.to(dtype), after.to(dtype)


def basis(rows: int, rank: int, seed: int, orthonormal: bool = False) -> Tensor:
    """Independent normal columns, or the first of an orthonormal base."""
    drawn = torch.randn(rows, rank, generator=generator(seed))
    return torch.linalg.qr(drawn.double())[0].float() if orthonormal else drawn


@st.composite
def pairs(
    draw: st.DrawFn, shapes: st.SearchStrategy[tuple[int, int]] = shapes, dtypes: Sequence[torch.dtype] = FLOATS
) -> tuple[Tensor, Tensor]:
    """A pair in layouts of its sides' own."""
    change = draw(st.sampled_from([0.0, 1e-3, 1.0]))
    before, after = pair(draw(st.sampled_from(dtypes)), draw(shapes), draw(seeds), change)
    return laid_out(before, draw(layouts)), laid_out(after, draw(layouts))


@st.composite
def cpu_work(draw: st.DrawFn) -> tuple[tuple[Tensor, Tensor], bool]:
    """A pair, and whether to compute in float64."""
    dtype, float64 = draw(st.sampled_from(CPU_WORK))
    return draw(pairs(dtypes=[dtype])), float64


def norm(matrix: Tensor) -> float:
    """The Frobenius norm, in float64."""
    return float(matrix.double().norm())
