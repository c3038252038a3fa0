"""Old bits put back in a checkpoint on disk are those that are put back in a model that is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import rlforget as rf
from rlforget.delta.file import DeltaFile
from rlforget.errors import CoordinateError, LayoutError, NonFiniteError, OutputError, WrongBaseError
from rlforget.recovery.on_disk import Control, rollback_on_disk
from rlforget_kernels.common.bits import as_bits

DTYPES = (torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.float64)


def pair(folder: Path, dtype: torch.dtype, seed: int = 0) -> tuple[dict[str, torch.Tensor], DeltaFile]:
    """Write a checkpoint before and after, with many equal steps, and the delta between."""
    generator = torch.Generator().manual_seed(seed)
    before = {name: torch.randn(size, generator=generator).to(dtype) for name, size in SIZES.items()}
    after = {}
    for name, value in before.items():
        moved = value.float() + 0.25 * torch.randint(-2, 3, value.shape, generator=generator)
        after[name] = moved.to(dtype)
    for side, weights in (("before", before), ("after", after)):
        rf.save_checkpoint(folder / side, weights, force=True)
    rf.write_diff(folder / "before", folder / "after", folder / "change.delta.safetensors", force=True)
    return after, DeltaFile(folder / "change.delta.safetensors")


SIZES = {"large": (70, 90), "small": (5,), "matrix": (40, 41), "scalar": ()}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("score", ["magnitude", "random"])
def test_the_same_bits_as_in_a_loaded_model(
    dtype: torch.dtype, score: Control, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("delta.file.writer", "delta.scan", "weights.saving", "weights.digest"):  # several ranges a tensor
        for constant in ("PIECE", "CHUNK"):
            monkeypatch.setattr(f"rlforget.{module}.{constant}", 1024, raising=False)
    after, file = pair(tmp_path, dtype)
    delta = rf.diff(tmp_path / "before", tmp_path / "after")
    for fraction in (1e-9, 0.1, 0.3, 1.0):
        report = rollback_on_disk(
            tmp_path / "after", file, tmp_path / "out", score=score, fraction=fraction, seed=5, force=True
        )
        live = {name: value.clone() for name, value in after.items()}
        done = rf.rollback(live, delta, rf.conflict(delta, score=score, seed=5).top(fraction=fraction))
        found = load_file(tmp_path / "out" / "model.safetensors")
        assert all(torch.equal(as_bits(found[name]), as_bits(live[name])) for name in live)
        assert report.written == done.report.written > 0
        assert report.norm_share == pytest.approx(done.report.norm_share, rel=1e-9)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 99), fraction=st.floats(1e-4, 1.0))
def test_in_place_is_undone(seed: int, fraction: float, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("pair")
    after, file = pair(folder, torch.bfloat16, seed)
    rollback_on_disk(folder / "after", file, score="magnitude", fraction=fraction, in_place=True)
    changed = rf.diff(after, folder / "after")
    assert 0 < changed.changed <= max(1, round(fraction * file.numel))
    rf.undo(folder / "after")
    assert rf.diff(after, folder / "after").empty


def test_what_does_not_fit_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    _, file = pair(tmp_path, torch.bfloat16)
    asked: dict[str, Any] = {"score": "magnitude", "fraction": 0.1}
    with pytest.raises(WrongBaseError, match="apply the delta"):
        rollback_on_disk(tmp_path / "before", file, tmp_path / "out", **asked)
    with pytest.raises(OutputError, match="neither"):
        rollback_on_disk(tmp_path / "after", file, **asked)
    with pytest.raises(CoordinateError):
        rollback_on_disk(tmp_path / "after", file, tmp_path / "out", score="magnitude", fraction=0.0)
    rf.save_checkpoint(tmp_path / "more", {"large": torch.ones(3), "small": torch.ones(5)})
    rf.write_diff(tmp_path / "more", tmp_path / "after", tmp_path / "more.delta.safetensors")
    with pytest.raises(LayoutError):
        rollback_on_disk(tmp_path / "after", DeltaFile(tmp_path / "more.delta.safetensors"), tmp_path / "out", **asked)
    ones = torch.ones(500)
    rf.save_checkpoint(tmp_path / "one", {"w": ones})
    ones[7] = float("nan")
    rf.save_checkpoint(tmp_path / "nan", {"w": ones})
    rf.write_diff(tmp_path / "one", tmp_path / "nan", tmp_path / "nan.delta.safetensors")
    with pytest.raises(NonFiniteError, match="'w'"):
        rollback_on_disk(tmp_path / "nan", DeltaFile(tmp_path / "nan.delta.safetensors"), tmp_path / "out", **asked)
    assert not (tmp_path / "out").exists()


def test_a_dry_run_tells_the_same_and_writes_nothing(tmp_path: Path) -> None:
    _, file = pair(tmp_path, torch.bfloat16)
    asked: dict[str, Any] = {"score": "random", "fraction": 0.2}
    dry = rollback_on_disk(tmp_path / "after", file, tmp_path / "out", dry_run=True, **asked)
    assert not (tmp_path / "out").exists()
    assert dry == rollback_on_disk(tmp_path / "after", file, tmp_path / "out", **asked)
