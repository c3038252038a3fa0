"""Tensors that take several ranges of a scan and frames of a file, and more coordinates than 31 bits count."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import rlforget as rf
from rlforget.delta.file import DeltaFile
from rlforget.delta.patching import check_fits
from rlforget.delta.scan import PIECE
from rlforget.delta.streaming import write_diff
from rlforget.weights import TensorMeta, open_weights
from rlforget.weights.safetensors_file import header_text
from tests.delta.random_weights import same_bits

EDGES = [0, 1, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE - 1, 2 * PIECE, 2 * PIECE + 6]


@pytest.mark.parametrize(
    ("dtype", "numel"),
    [
        (torch.bfloat16, PIECE - 1),
        (torch.bfloat16, PIECE + 1),
        (torch.bfloat16, 2 * PIECE + 7),
        (torch.float8_e5m2, 2 * PIECE + 7),
        (torch.float32, PIECE + 1),
    ],
    ids=str,
)
@pytest.mark.parametrize("share", [0.0, 0.01, 0.9], ids=["edges alone", "sparse", "dense"])
def test_every_edge_of_a_range_survives(tmp_path: Path, dtype: torch.dtype, numel: int, share: float) -> None:
    random = torch.Generator().manual_seed(0)
    before = (torch.randn(numel, generator=random) * 0.02).to(dtype)
    chosen = torch.rand(numel, generator=random) < share
    chosen[[edge for edge in EDGES if edge < numel]] = True
    bits = before.view({1: torch.uint8, 2: torch.int16, 4: torch.int32}[dtype.itemsize])
    after = (bits ^ chosen.to(bits.dtype)).view(dtype)
    save_file({"a": before, "b": before[:5].clone()}, tmp_path / "before.safetensors")
    save_file({"a": after, "b": after[:5].clone()}, tmp_path / "after.safetensors")

    path = tmp_path / "change.delta.safetensors"
    write_diff(tmp_path / "before.safetensors", tmp_path / "after.safetensors", path)
    assert DeltaFile(path).tensors["a"].changed == int(chosen.sum())
    rf.apply(tmp_path / "before.safetensors", path, out=tmp_path / "applied.safetensors")
    assert same_bits(open_weights(tmp_path / "applied.safetensors").tensor("a"), after)
    rf.revert(tmp_path / "after.safetensors", path, out=tmp_path / "reverted.safetensors")
    assert same_bits(open_weights(tmp_path / "reverted.safetensors").tensor("a"), before)
    loaded = rf.Delta.load(path, base=tmp_path / "after.safetensors")
    assert torch.equal(loaded["a"].indices.long(), chosen.nonzero().flatten())


@pytest.mark.slow
def test_more_coordinates_than_31_bits_count(tmp_path: Path) -> None:
    """A tensor of 2³¹ + 5 bytes, nearly all of it a hole in its file."""
    numel = 2**31 + 5
    places = [0, PIECE, 2**31 - 1, 2**31, 2**31 + 1, numel - 1]
    text, _ = header_text({"a": TensorMeta(torch.float8_e4m3fn, (numel,))}, {})
    for side, value in (("before", 0x38), ("after", 0x39)):
        with open(tmp_path / f"{side}.safetensors", "wb") as file:
            file.write(text)
            file.truncate(len(text) + numel)
            for place in places:
                file.seek(len(text) + place)
                file.write(bytes([value]))
    before, after = tmp_path / "before.safetensors", tmp_path / "after.safetensors"
    path = tmp_path / "change.delta.safetensors"
    write_diff(before, after, path)
    assert path.stat().st_size < 100_000
    check_fits(before, path)
    check_fits(after, path, backward=True)
    delta = rf.Delta.load(path, base=before)
    assert delta["a"].indices.dtype == torch.int64
    assert delta["a"].indices.tolist() == places
    assert delta == rf.diff(before, after)
    rf.apply(before, path, out=tmp_path / "applied.safetensors")
    assert rf.diff(tmp_path / "applied.safetensors", after).empty
