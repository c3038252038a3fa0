"""The words of 32 bits in a tensor's memory, and the elements at its ends that fill no word alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Piece:
    """A run of words, or of narrow elements.

    Attributes:
        tensor: Its position in the caller's list.
        bits: 1-D integers: int32 words, or int8 or int16 elements.
        first: Number of its first word or element in the whole tensor.
        per_word: How many of them make a word: 1, 2 or 4.
    """

    tensor: int
    bits: Tensor
    first: int
    per_word: int


def pieces(tensor: int, bits: Tensor, offset: int) -> list[Piece]:
    """Cut the integer `bits` (1-D, contiguous), whose first element is number `offset`, into at most three pieces."""
    size = bits.element_size()
    if size >= 4:
        return [Piece(tensor, bits.view(torch.int32), offset * (size // 4), 1)]
    per_word = 4 // size
    head = min(-offset % per_word, bits.numel())
    tail = head + (bits.numel() - head) // per_word * per_word
    if (bits.storage_offset() + head) % per_word:  # torch views no words from here
        return [Piece(tensor, bits, offset, per_word)]
    if head == 0 < tail == bits.numel():
        return [Piece(tensor, bits.view(torch.int32), offset // per_word, 1)]
    cut = [
        Piece(tensor, bits[:head], offset, per_word),
        Piece(tensor, bits[head:tail].view(torch.int32), (offset + head) // per_word, 1),
        Piece(tensor, bits[tail:], offset + tail, per_word),
    ]
    return [piece for piece in cut if piece.bits.numel()]
