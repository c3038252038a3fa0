"""Decoded frames that wait to be asked for again."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
import torch

from rlforget.delta import DeltaFile, diff
from rlforget.delta.scan import PIECE


class CountingFile(DeltaFile):
    """A delta file that counts the frames it decodes."""

    decoded = 0

    def _read_frame(self, *frame: Any) -> Any:
        self.decoded += 1
        return super()._read_frame(*frame)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A delta of a tensor of three frames."""
    path = tmp_path_factory.mktemp("delta") / "x.delta.safetensors"
    before = torch.zeros(3 * PIECE, dtype=torch.int8)
    after = before.clone()
    after[::1000] = 1
    diff({"w": before}, {"w": after}).save(path)
    return path


def test_threads_that_ask_for_one_frame_decode_it_once(path: Path) -> None:
    file, together = CountingFile(path), Barrier(8)

    def read(part: int) -> int:
        together.wait()
        return file.patch("w", part * 1000, (part + 1) * 1000).indices.numel()

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(read, range(8))) == [1] * 8
    assert file.decoded == 1


@pytest.mark.parametrize(("kept", "decoded"), [(1, 5), (2, 4), (3, 3)])
def test_no_more_frames_are_kept_than_was_said(kept: int, decoded: int, path: Path) -> None:
    file = CountingFile(path, kept_frames=kept)
    for frame in (0, 0, 1, 1, 0, 2, 1, 1):
        file.patch("w", frame * PIECE, frame * PIECE + 1)
    assert file.decoded == decoded
