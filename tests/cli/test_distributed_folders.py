"""Commands on folders of torch.distributed.checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import rlforget as rf
from rlforget.weights import open_weights, save_checkpoint
from rlforget.weights.distributed_checkpoint import DistributedWeights
from tests.cli.conftest import run

BEFORE = {"w": torch.arange(12.0).reshape(3, 4), "b": torch.zeros(3, dtype=torch.bfloat16)}
AFTER = {**BEFORE, "b": torch.tensor([0.0, 1, 2]).bfloat16()}


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """A model before and after, the latter with a configuration."""
    for name, tensors in (("before", BEFORE), ("after", AFTER)):
        save_checkpoint(tmp_path / name, tensors, distributed=True)
    (tmp_path / "after" / "config.json").write_text("{}")
    return tmp_path / "before", tmp_path / "after"


def test_diff_apply_and_revert(folders: tuple[Path, Path], tmp_path: Path) -> None:
    before, after = folders
    delta = tmp_path / "x.delta.safetensors"
    assert run("diff", before, after, "-o", delta, "--self-contained", "--json").json["total"]["changed"] == 2
    for verb, start, end in (("apply", before, AFTER), ("revert", after, BEFORE)):
        assert run(verb, start, delta, "-o", tmp_path / verb, "--dry-run").code == 0
        assert run(verb, start, delta, "-o", tmp_path / verb).code == 0
        assert isinstance(open_weights(tmp_path / verb), DistributedWeights)
        assert rf.diff(tmp_path / verb, end).empty
    assert (tmp_path / "apply" / "config.json").exists()
    assert not (tmp_path / "revert" / "config.json").exists()
    for flags in ((), ("--dry-run",)):
        assert "only written anew" in run("apply", before, delta, "--in-place", *flags).fault


def test_verify_and_undo(folders: tuple[Path, Path]) -> None:
    before, after = folders
    assert "2 tensors in 2 files: sound" in run("verify", before).out
    (after / "__0_0.distcp").write_bytes(b"")
    found = run("verify", after)
    assert found.code == 1
    assert "unreadable" in found.out
    assert "only written anew" in run("undo", before).fault


def test_a_history_begins_with_one_and_gives_one_back(folders: tuple[Path, Path], tmp_path: Path) -> None:
    before, after = folders
    history = tmp_path / "history"
    assert run("init", before, "-H", history).code == 0
    assert run("commit", after, "-H", history, "-m", "tuned", "--name", "tuned").code == 0
    assert run("verify", "-H", history).code == 0
    for stage, tensors in (("tuned", AFTER), ("base", BEFORE)):
        assert run("checkout", stage, "-H", history, "-o", tmp_path / stage).code == 0
        assert isinstance(open_weights(tmp_path / stage), DistributedWeights)
        assert rf.diff(tmp_path / stage, tensors).empty
    assert "changed" in run("diff", "base", "tuned", "-H", history).out
    copied = tmp_path / "copied"
    assert run("init", before, "-H", copied, "--copy").code == 0
    assert isinstance(rf.History.open(copied).weights("base").base, DistributedWeights)


def test_what_loads_a_model_asks_for_safetensors(folders: tuple[Path, Path], tmp_path: Path) -> None:
    before, after = folders
    delta = tmp_path / "x.delta.safetensors"
    run("diff", before, after, "-o", delta)
    fault = run("rollback", after, delta, "-o", tmp_path / "out", "--rule", "magnitude", "--budget", 0.1).fault
    assert "safetensors" in fault
