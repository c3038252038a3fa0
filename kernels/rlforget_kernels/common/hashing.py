"""The one hash of this package, on int64 tensors that stand for unsigned words modulo 2**64.

`cpu_math` and `gpu_math` hold the same functions for numba and Triton; all three agree to the bit.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15
"""2**64 over the golden ratio, odd: spreads consecutive integers over the words."""
MIX_1 = 0xFF51AFD7ED558CCD
MIX_2 = 0xC4CEB9FE1A85EC53


def signed(word: int) -> int:
    """Return the int64 whose bits are those of the unsigned 64-bit `word`."""
    word &= 2**64 - 1
    return word - 2**64 if word >= 2**63 else word


def shift_right(words: Tensor, count: int) -> Tensor:
    """Shift int64 `words` right by `count` > 0 bits, filling with zeros (torch fills with the sign)."""
    return (words >> count) & ((1 << (64 - count)) - 1)


def mix64(words: Tensor) -> Tensor:
    """Mix each of the int64 `words`: a bijection in which every output bit depends on every input bit.

    Source: the 64-bit finaliser of MurmurHash3 (A. Appleby, public domain).
    """
    words = (words ^ shift_right(words, 33)) * signed(MIX_1)
    words = (words ^ shift_right(words, 33)) * signed(MIX_2)
    return words ^ shift_right(words, 33)


def mix64_int(word: int) -> int:
    """Mix one unsigned 64-bit `word`, as `mix64` does."""
    word = (word ^ (word >> 33)) * MIX_1 % 2**64
    word = (word ^ (word >> 33)) * MIX_2 % 2**64
    return word ^ (word >> 33)


def random_words(seed: int, offset: int, count: int, device: torch.device | str = "cpu") -> Tensor:
    """Return the random words of coordinates `offset` ... `offset + count - 1` under `seed`: int64, all 64 bits.

    Word i is mix64(i * GOLDEN + mix64(seed)): a function of the coordinate alone, so the same on every device and
    for every split of a tensor.
    """
    return _random_words_at(seed, torch.arange(offset, offset + count, dtype=torch.int64, device=device))


def consecutive(tensors: Sequence[Tensor]) -> list[int]:
    """Return the first coordinates of tensors that follow on one another, so that no two share random words."""
    return list(itertools.accumulate((tensor.numel() for tensor in tensors), initial=0))[: len(tensors)]


def random_bits(seed: int, index: Tensor) -> Tensor:
    """Return the leading half of the random words of the coordinates `index` (int64): int64 in [0, 2**32)."""
    return shift_right(_random_words_at(seed, index), 32)


def _random_words_at(seed: int, index: Tensor) -> Tensor:
    return mix64(index * signed(GOLDEN) + signed(mix64_int(seed % 2**64)))
