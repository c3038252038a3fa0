"""Files are as small as promised: within 5% of the entropy of independent positions and steps, all of the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import zstandard
from safetensors.torch import load_file, save

from benchmarks.checkpoint_pair import write_pair
from rlforget.delta.file import DeltaFile
from rlforget.delta.streaming import write_diff
from rlforget_kernels.common.bits import as_bits
from rlforget_kernels.step_codes import reference
from tests.delta.random_weights import Tensors

FIXED = 450
"""Bytes beside the frames in a file of one tensor, as docs/format.md states them."""


def entropy(counts: np.ndarray) -> float:
    """The bits that so many symbols of each kind take together."""
    counts = counts[counts > 0]
    return float(-(counts * np.log2(counts / counts.sum())).sum())


def floor(before: Tensors, after: Tensors) -> float:
    """The bytes that independent positions and steps take at least."""
    old, new = (np.concatenate([as_bits(side[name]).numpy() for name in before]) for side in (before, after))
    codes = reference.steps_between(old.view("u2"), new.view("u2"), floating=True)
    changed = np.count_nonzero(codes)
    steps = np.unique(codes[codes != 0], return_counts=True)[1]
    return (entropy(np.array([changed, codes.size - changed])) + entropy(steps)) / 8


@pytest.mark.parametrize("changed", [0.0113, 0.03, 0.06])
def test_files_come_close_to_the_entropy(changed: float, tmp_path: Path) -> None:
    write_pair(tmp_path, "tiny", changed)
    sides = [load_file(next((tmp_path / side).glob("*.safetensors"))) for side in ("before", "after")]
    write_diff(tmp_path / "before", tmp_path / "after", tmp_path / "x")
    least = floor(*sides)
    assert DeltaFile(tmp_path / "x").size < 1.05 * least
    assert sum(frame.length for frame in DeltaFile(tmp_path / "x")._table.frames) < 1.015 * least


@pytest.mark.parametrize("kind", ["unrelated", "constant", "few values", "one in a hundred reset", "sparse"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_no_file_is_larger_than_what_zstd_makes_of_the_weights_after(
    kind: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    random = torch.Generator().manual_seed(0)
    before, other = (0.02 * torch.randn(300_000, generator=random) for _ in range(2))
    share = torch.rand(300_000, generator=random) < 0.01
    after = {
        "unrelated": other,
        "constant": torch.full_like(before, 0.5),
        "few values": (100 * before).round() / 100,
        "one in a hundred reset": torch.where(share, 0, before),
        "sparse": torch.where(share, before, 0),
    }[kind]
    now = {"w": after.to(dtype)}
    write_diff({"w": before.to(dtype)}, now, tmp_path / "x")
    compressed = len(zstandard.ZstdCompressor(level=3).compress(save(now)))
    file = DeltaFile(tmp_path / "x")
    frames = sum(frame.length for frame in file._table.frames)
    assert file.size - frames <= FIXED
    assert frames < compressed
    # Weights that are nothing but a constant take less than even a header does.
    assert file.size < compressed + (FIXED if kind == "constant" else 0)
