"""Random weights for the tests of deltas: every dtype, any bits, any names, and what a fine-tune might make of them."""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
from hypothesis import strategies as st
from safetensors.torch import save_file

from rlforget.weights import DTYPES

Tensors = dict[str, torch.Tensor]

SPECIAL = {
    1: [0x00, 0x80, 0x7F, 0xFF, 0x7C, 0x7D, 0x01],
    2: [0x0000, 0x8000, 0x7F80, 0xFF80, 0x7FC0, 0x7FC1, 0xFFFF, 0x7C00, 0x0001],
    4: [0x00000000, 0x80000000, 0x7F800000, 0x7FC00000, 0x7FC00001, 0xFFFFFFFF, 0x00000001],
    8: [0, 1 << 63, 0x7FF0 << 48, 0x7FF8 << 48, (0x7FF8 << 48) + 1, (1 << 64) - 1, 1],
}
"""Zeros of both signs, infinities, NaNs of several payloads, denormals, the largest integers; by width in bytes."""

names = (
    st.text(min_size=1, max_size=10)
    .map(lambda name: name.encode("utf-8", "replace").decode())
    .filter(lambda name: name != "__metadata__")
)
shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)


def bits_of(tensor: torch.Tensor) -> torch.Tensor:
    """Return the bytes of a tensor in row-major order."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return (a.dtype, a.shape) == (b.dtype, b.shape) and torch.equal(bits_of(a), bits_of(b))


def random_bits(dtype: torch.dtype, count: int, rng: random.Random) -> torch.Tensor:
    """Return `count` values with any bits at all, special values among them."""
    width = dtype.itemsize
    words = [
        rng.choice(SPECIAL.get(width, [0])) if rng.random() < 0.2 else rng.getrandbits(8 * width) for _ in range(count)
    ]
    if dtype == torch.bool:
        words = [word & 1 for word in words]
    data = b"".join(word.to_bytes(width, "little") for word in words)
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).view(dtype) if data else torch.empty(0, dtype=dtype)


def random_tensor(dtype: torch.dtype, shape: tuple[int, ...], rng: random.Random) -> torch.Tensor:
    count = 1
    for size in shape:
        count *= size
    return random_bits(dtype, count, rng).reshape(shape)


def tuned(tensor: torch.Tensor, share: float, rng: random.Random) -> torch.Tensor:
    """Return a copy in which about `share` of the coordinates hold other bits."""
    copy = tensor.clone()
    flat = copy.view(-1)
    chosen = [i for i in range(flat.numel()) if rng.random() < share]
    if chosen:
        flat.view(torch.uint8).view(-1, tensor.itemsize)[chosen] = (
            random_bits(tensor.dtype, len(chosen), rng).view(torch.uint8).view(-1, tensor.itemsize)
        )
    return copy


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Tensors, Tensors]:
    """Draw the same tensors before and after, some of them unchanged."""
    rng = random.Random(draw(st.integers(0, 2**32)))
    metas = draw(st.dictionaries(names, st.tuples(st.sampled_from(DTYPES), shapes), max_size=5))
    before = {name: random_tensor(dtype, shape, rng) for name, (dtype, shape) in metas.items()}
    share = draw(st.sampled_from([0.0, 0.05, 0.5, 1.0]))
    return before, {name: tuned(tensor, share, rng) for name, tensor in before.items()}


def write_checkpoint(folder: Path, tensors: Tensors, shards: int, ties: dict[str, str] | None = None) -> Path:
    """Write a checkpoint folder; `shards` = 0 is a single file without an index.

    `ties` are names that the files leave out, with the tensors they stand for, as `safetensors.torch.save_model` does.
    """
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    if not shards:
        save_file(tensors, folder / "model.safetensors", metadata=ties or None)
        return folder
    weight_map = {name: f"{position % shards}.safetensors" for position, name in enumerate(tensors)}
    for shard in set(weight_map.values()):
        mine = {name: tensors[name] for name in tensors if weight_map[name] == shard}
        save_file(mine, folder / shard, metadata={alias: name for alias, name in (ties or {}).items() if name in mine})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder
