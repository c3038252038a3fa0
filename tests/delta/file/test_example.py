"""A second reader of the format, which shares no code with the first, makes the same bits."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from safetensors.torch import load_file, save_file

from rlforget.delta import Delta, DeltaFile
from rlforget.delta.streaming import write_diff
from tests.delta.file.deltas import checkpoints, saved
from tests.delta.random_weights import Tensors, bits_of, same_bits
from tests.kernels.strategies import DTYPES, changed_copy, random_tensor

EXAMPLE = Path(__file__).parents[3] / "examples" / "read_delta.py"


def pair() -> tuple[Tensors, Tensors]:
    """Tensors of every dtype, and of changes that end in every encoding."""
    before = {
        f"{str(dtype)[6:]} {density}": random_tensor(dtype, (40, 9), 5) for dtype in DTYPES for density in (0.02, 0.9)
    }
    after = {name: changed_copy(tensor, float(name.split()[1]), 6) for name, tensor in before.items()}
    random = torch.Generator().manual_seed(0)
    before["few values"] = torch.randn(50_000, generator=random).bfloat16()
    after["few values"] = torch.randn(50_000, generator=random).round().bfloat16()
    before["fine"] = torch.randn(40_000, generator=random)
    after["fine"] = before["fine"] + 1e-6 * torch.randn(40_000, generator=random)
    before["many"] = torch.randn(5_000_000, generator=random).bfloat16()
    after["many"] = (before["many"].float() + 1e-4 * torch.rand(5_000_000, generator=random)).bfloat16()
    before["gone"], after["come"], after["come, too"] = torch.ones(3), torch.ones(()), torch.ones(2, 0).half()
    before["grown"], after["grown"] = torch.zeros(2, 2), torch.ones(3, 2)
    before["old"], after["new"] = torch.zeros(7), torch.arange(7.0)
    return before, after


@pytest.mark.parametrize("self_contained", [False, True])
def test_the_example_makes_the_weights_after(self_contained: bool, tmp_path: Path) -> None:
    before, after = pair()
    write_diff(before, after, tmp_path / "x", rename={"old": "new"}, self_contained=self_contained)
    file = DeltaFile(tmp_path / "x")
    encodings = {file.encoding(name) for name in file.tensors}
    assert {"sparse", "dense", "whole"} <= {kind for encoding in encodings for kind in encoding.split("+")}
    save_file(before, tmp_path / "before.safetensors")
    command = [sys.executable, str(EXAMPLE), "x", "before.safetensors", "after.safetensors"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "6 of            7 changed  old float32[7]" in done.stdout
    found = load_file(tmp_path / "after.safetensors")
    assert found.keys() == after.keys()
    assert all(same_bits(found[name], tensor) for name, tensor in after.items())


def test_the_example_needs_nothing_of_ours() -> None:
    listing = "[m for m in sys.modules if m.startswith('rlforget')]"
    code = f"import runpy, sys; runpy.run_path({str(EXAMPLE)!r}); print({listing})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@given(checkpoints())
def test_the_example_reads_whatever_is_written(drawn: tuple[Tensors, Tensors, Delta]) -> None:
    example = runpy.run_path(str(EXAMPLE))
    before, after, delta = drawn
    with saved(delta) as path:
        file = example["DeltaFile"](str(path))
        found = example["rebuild"](file, {name: ("", [], bits_of(tensor).numpy()) for name, tensor in before.items()})
        assert found.keys() == after.keys()
        for name, tensor in after.items():
            assert found[name][2].tobytes() == bits_of(tensor).numpy().tobytes()
        assert [name for name, *_ in file.text["files"]] == [*delta.files]
