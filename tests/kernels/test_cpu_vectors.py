from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import pytest

from rlforget_kernels.common import cpu_vectors
from rlforget_kernels.common.cpu_vectors import (
    can_compress,
    compress,
    compress_indices,
    count_bits,
    differences,
    lowest_bit,
)

WORDS = [0, 1, 1 << 63, 2**64 - 1, 0x8000_0001_0001_8000, 0xAAAA_AAAA_AAAA_AAAA]
UNSIGNED = [np.uint8, np.uint16, np.uint32, np.uint64]


def bits_of(word: int) -> npt.NDArray[np.bool_]:
    return np.array([word >> k & 1 for k in range(64)], dtype=bool)


@numba.njit
def compared(old, new, start):  # type: ignore[no-untyped-def]
    return differences(old, new, np.uint64(start))


@numba.njit
def looked_at(word):  # type: ignore[no-untyped-def]
    return count_bits(np.uint64(word)), lowest_bit(np.uint64(word))


@numba.njit
def picked(source, word, values, numbers):  # type: ignore[no-untyped-def]
    compress(source, np.uint64(7), np.uint64(word), values, np.uint64(5))
    compress_indices(np.uint64(7), np.uint64(word), numbers, np.uint64(5))


@pytest.mark.parametrize("dtype", UNSIGNED)
@pytest.mark.parametrize("word", WORDS)
def test_differences(dtype: Any, word: int):
    old = np.arange(100).astype(dtype)
    new = old.copy()
    new[3:67] ^= bits_of(word).astype(dtype) << (8 * old.itemsize - 1)
    assert compared(old, new, 3) == word


@pytest.mark.parametrize("word", WORDS[1:])
def test_bits_of_a_word(word: int):
    assert looked_at(np.uint64(word)) == (word.bit_count(), (word & -word).bit_length() - 1)


@pytest.mark.skipif(not can_compress(), reason="needs a processor with AVX-512 VBMI2")
@pytest.mark.parametrize("dtype", UNSIGNED)
@pytest.mark.parametrize("index", [np.int32, np.int64])
@pytest.mark.parametrize("word", WORDS)
def test_compress(dtype: Any, index: Any, word: int):
    source = np.random.default_rng(0).integers(0, 200, 100).astype(dtype)
    values, numbers = np.full(100, 77, dtype), np.full(100, 77, index)
    picked(source, np.uint64(word), values, numbers)
    expected = 7 + bits_of(word).nonzero()[0]
    for found, truth in ((values, source[expected]), (numbers, expected)):
        assert (found[5 : 5 + len(expected)] == truth).all()
        assert (found[:5] == 77).all()
        assert (found[5 + 64 :] == 77).all()


def test_a_processor_without_the_instructions_runs_the_portable_code():
    """In a process that compiles for the least that there is of this architecture."""
    script = """
import torch
from rlforget_kernels.common.cpu_vectors import can_compress
from rlforget_kernels.sparse_delta import sparse_delta
before = torch.zeros(1000)
before[::7] = 1
assert not can_compress()
assert sparse_delta(before, torch.zeros(1000))[0].tolist() == list(range(0, 1000, 7))
"""
    environment = os.environ | {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)


def test_what_numba_compiles_for_decides(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cpu_vectors.cpu_target.target_context.codegen(), "_tm_features", "+avx512f,+avx512vl")
    assert not can_compress.__wrapped__()
