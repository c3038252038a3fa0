"""What the matrix unit's operands hold, told from the numbers that they were made of."""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from rlforget_kernels.common.amx_cpu import available
from rlforget_kernels.common.bfloat16_terms_cpu import (
    SPAN,
    STRIP,
    TERMS,
    TERMS_OF,
    TILE_WORDS,
    interleave_bfloat16,
    interleave_float16,
    interleave_float32,
    split_rows,
    transpose_tiles,
)
from tests.kernels.strategies import generator

pytestmark = pytest.mark.skipif(not available(), reason="this processor has no bfloat16 matrix unit")

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
STEPS = 2


@numba.njit
def split(source, row, rows, target):
    split_rows(source, 0, row, rows, STEPS, target, 0)


@numba.njit
def turn(source, target, count):
    transpose_tiles(source, 0, target, 0, count)


@numba.njit
def put_together(form, flat, offsets, pairs, target):
    if form == 0:
        interleave_float32(flat, offsets, 0, pairs, 3, target, 0)
    elif form == 1:
        interleave_bfloat16(flat, offsets, 0, pairs, 3, target, 0)
    else:
        interleave_float16(flat, offsets, 0, pairs, 3, target, 0)


def terms(words: npt.NDArray[np.uint32]) -> Tensor:
    """The float64 value of both terms of every word: [words, 2]."""
    halves = np.stack((words << np.uint32(16), words & np.uint32(0xFFFF0000)), axis=-1)
    return torch.from_numpy(halves.view(np.float32)).double()


@pytest.mark.parametrize("scale", [1.0, 1e30, 1e-25])
def test_three_terms_are_the_number(scale: float):
    row = STEPS * SPAN + 5
    values = torch.randn(32, row, generator=generator(0)) * scale
    values[0, :6] = torch.tensor([0.0, -0.0, 1.0, torch.finfo(torch.float32).max, 2.0**-80 * (1 + 2**-23), -1 / 3])
    target = np.zeros(STEPS * TERMS * STRIP, np.uint32)
    split(values.flatten().numpy(), row, 32, target)
    found = terms(target.reshape(STEPS, TERMS, 2 * 16, 16))  # [step, term, row, word, half]
    assert found.isfinite().all()
    # Word w of a step holds its entries w and 16 + w.
    expected = values[:, : STEPS * SPAN].double().reshape(32, STEPS, 2, 16).permute(1, 0, 3, 2)
    assert torch.equal(found.sum(1), expected)
    assert (found[:, 2].abs() <= 2**-15 * found[:, 0].abs()).all()


@pytest.mark.parametrize("bits", [0x7F800000, 0xFF800000, 0x7F800001, 0x7FFFFFFF, 0xFFC00000], ids=hex)
def test_no_term_hides_what_is_not_finite(bits: int):
    values = np.full(STEPS * SPAN, bits, np.uint32).view(np.float32)
    target = np.zeros(STEPS * TERMS * STRIP, np.uint32)
    split(values, values.size, 1, target)
    found = terms(target.reshape(STEPS, TERMS, 2 * 16, 16)[:, :, 0])
    assert not found.sum(1).isfinite().any()


def test_tiles_are_transposed():
    source = np.arange(3 * TILE_WORDS, dtype=np.uint32)
    target = np.zeros_like(source)
    turn(source, target, 3)
    assert np.array_equal(target.reshape(3, 16, 16), source.reshape(3, 16, 16).transpose(0, 2, 1))


@pytest.mark.parametrize("form", range(3))
def test_rows_are_put_together_two_and_two(form: int):
    rows, row = 2 * 16 * STEPS, 41
    values = torch.randn(rows, row, generator=generator(form)).to(DTYPES[form])
    flat = values.flatten().view(torch.int32 if form == 0 else torch.int16).numpy()
    order = np.random.default_rng(0).permutation(rows)
    target = np.zeros(STEPS * TERMS_OF[form] * STRIP, np.uint32)
    put_together(form, flat.view(f"u{flat.itemsize}"), order * row, rows // 2, target)
    found = terms(target.reshape(STEPS, TERMS_OF[form], 2, 16, 16)).sum(
        1
    )  # [step, column mod 2, pair, column, row mod 2]
    expected = values[torch.from_numpy(order), 3 : 3 + SPAN].double().reshape(STEPS, 16, 2, 16, 2)
    assert torch.equal(found, expected.permute(0, 4, 1, 3, 2))
