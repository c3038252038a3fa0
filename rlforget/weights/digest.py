"""One short text that tells two whole sets of weights apart."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import torch

from rlforget.counting import counted
from rlforget.weights.layout import TensorMeta
from rlforget.weights.source import CHUNK, Weights
from rlforget_kernels.fingerprint import fingerprint

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
    """Read all of `weights`, in bounded memory, and return their digest."""
    names = counted("coordinates", list(weights.names()), size=lambda name: weights.meta(name).numel)
    return digest({name: (weights.meta(name), lanes_of(weights, name)) for name in names})


def lanes_of(weights: Weights, name: str) -> tuple[int, int]:
    """Read a tensor range by range and return its fingerprint."""
    numel, lanes = weights.meta(name).numel, torch.zeros(2, dtype=torch.int64)
    for start in range(0, numel, CHUNK):
        lanes += fingerprint(weights.bits(name, start, min(start + CHUNK, numel)), start)
    first, second = lanes.tolist()
    return first, second
