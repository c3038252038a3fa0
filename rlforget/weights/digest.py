"""One short text that tells two whole sets of weights apart."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import NamedTuple

import torch

from rlforget.counting import telling
from rlforget.weights.ahead import Progress, map_ahead
from rlforget.weights.batching import batches
from rlforget.weights.box import Box
from rlforget.weights.layout import TensorMeta
from rlforget.weights.source import CHUNK, Weights
from rlforget_kernels.common.bits import as_bits
from rlforget_kernels.fingerprint import foreach_fingerprint

_LENGTH = 32  # hexadecimal digits: 128 bits, as many as a fingerprint has


def digest(tensors: Mapping[str, tuple[TensorMeta, Sequence[int]]]) -> str:
    """Return a digest of names, dtypes, shapes and bits, whatever the order.

    Args:
        tensors: For each canonical name the tensor's dtype and shape, and the two lanes of its fingerprint
            (`rlforget_kernels.fingerprint`).

    Returns:
        32 hexadecimal digits: the head of the SHA-256 of one line a tensor, sorted by name,
        `NAME DTYPE (SIZES) [LANE, LANE]`.
    """
    text = hashlib.sha256()
    for name in sorted(tensors):
        meta, lanes = tensors[name]
        dtype = str(meta.dtype).removeprefix("torch.")
        text.update(f"{name} {dtype} {tuple(meta.shape)} {list(lanes)}\n".encode("utf-8", "surrogatepass"))
    return text.hexdigest()[:_LENGTH]


def weights_digest(weights: Weights) -> str:
    """Read all of `weights`, in bounded memory, and return their digest; of shards every rank reads its own."""
    if weights.sharding is not None:
        lanes = sharded_lanes(weights)
        return digest({name: (weights.meta(name), lanes[name]) for name in weights.names()})
    lanes = all_lanes(weights, weights.names(), telling("coordinates"))
    return digest({name: (weights.meta(name), lanes[name]) for name in weights.names()})


def sharded_lanes(weights: Weights) -> dict[str, tuple[int, int]]:
    """Return the fingerprints of tensors that are spread over ranks, by name. Every rank has to call this."""
    assert weights.sharding is not None
    names = weights.names()
    boxes = [weights.sharding.boxes[name] for name in names]
    here = block_lanes([weights.tensor(name) for name in names], boxes)
    told = weights.sharding.total(dict(zip(names, here, strict=True)))
    return {name: signed(told[name]) for name in names}


def block_lanes(tensors: Sequence[torch.Tensor], boxes: Sequence[Box]) -> list[list[int]]:
    """Return what each block, all on one device, adds to the fingerprint of its tensor."""
    if all(box.is_whole for box in boxes):
        whole: list[list[int]] = foreach_fingerprint(list(tensors)).tolist()
        return whole
    owners, parts, offsets = [], [], []
    for number, (tensor, box) in enumerate(zip(tensors, boxes, strict=True)):
        bits = as_bits(tensor)
        for here, there in box.runs():
            owners.append(number)
            parts.append(bits[here])
            offsets.append(there.start)
    sums = torch.zeros(len(tensors), 2, dtype=torch.int64)
    if parts:
        sums.index_add_(0, torch.tensor(owners), foreach_fingerprint(parts, offsets).cpu())
    return [list(map(int, row)) for row in sums]


def signed(sums: Sequence[int]) -> tuple[int, int]:
    """Return the lanes that sums of them are modulo 2**64, as signed numbers."""
    first, second = ((lane + 2**63) % 2**64 - 2**63 for lane in sums)
    return first, second


def lanes_of(weights: Weights, name: str) -> tuple[int, int]:
    """Read a tensor range by range, ahead by threads, and return its fingerprint."""
    return all_lanes(weights, [name])[name]


def all_lanes(weights: Weights, names: Sequence[str], progress: Progress | None = None) -> dict[str, tuple[int, int]]:
    """Read tensors range by range, ahead by threads, and return their fingerprints by name.

    Args:
        weights: Where they are.
        names: Theirs, each once.
        progress: Told how many coordinates were read, and of how many.
    """
    sizes = {name: weights.meta(name).numel for name in names}
    ranges = [_Range(name, at, min(at + CHUNK, size)) for name, size in sizes.items() for at in range(0, size, CHUNK)]

    def read(run: list[_Range]) -> list[tuple[_Range, list[int]]]:
        lanes = foreach_fingerprint([weights.bits(*one) for one in run], [one.start for one in run])
        return list(zip(run, lanes.tolist(), strict=True))

    sums, done = dict.fromkeys(names, (0, 0)), 0
    with closing(map_ahead(read, batches(ranges, _Range.length, CHUNK))) as found:
        for run in found:
            for one, (first, second) in run:
                before = sums[one.name]
                sums[one.name] = signed((before[0] + first, before[1] + second))
                done += one.length()
            if progress is not None:
                progress(done, sum(sizes.values()))
    return sums


class _Range(NamedTuple):
    """A range of a tensor's coordinates."""

    name: str
    start: int
    stop: int

    def length(self) -> int:
        return self.stop - self.start
