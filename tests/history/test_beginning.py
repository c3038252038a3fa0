"""Beginning a history, on a base by reference or by copy, and giving the base a new place."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

from rlforget.errors import HistoryError, NotACheckpointError, OutputError
from rlforget.history import History
from tests.delta.random_weights import write_checkpoint

TENSORS = {"a.weight": torch.arange(12.0).reshape(3, 4), "b": torch.tensor([1, 2], dtype=torch.int8)}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "base", TENSORS, 2)


def test_the_base_is_referred_to_by_a_relative_path(base: Path, tmp_path: Path) -> None:
    history = History.init(tmp_path / "runs" / "history", base)
    assert (history.base.path, history.base.copied) == ("../../base", False)
    assert history.base.files.keys() == {"config.json"}
    assert history.stages == ()
    assert history.head is None
    assert history.stage() is None
    assert history.log() == []
    assert history.graph() == [("*", history.base)]
    assert str(history.folder) in repr(history)


def test_a_folder_with_other_files_may_be_one(base: Path) -> None:
    history = History.init(base.parent, base)
    assert (history.base.path, history.base.copied) == ("base", True)


def test_a_copy_is_byte_for_byte(base: Path, tmp_path: Path) -> None:
    history = History.init(tmp_path / "history", base, copy=True)
    assert (history.base.path, history.base.copied) == ("base", True)
    for file in base.iterdir():
        assert (history.folder / "base" / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize("copy", [False, True])
def test_a_file_name_that_no_index_can_hold_is_named(base: Path, tmp_path: Path, copy: bool) -> None:
    (base / os.fsdecode(b"notes\xff.txt")).write_text("x")
    with pytest.raises(HistoryError, match=r"notes\\udcff\.txt.*Rename it"):
        History.init(tmp_path / "history", base, copy=copy)
    assert not (tmp_path / "history").exists()


def test_a_history_on_a_module_keeps_its_ties(tmp_path: Path) -> None:
    embed = torch.ones(3, 2)
    history = History.init(tmp_path / "history", {"embed": embed, "head": embed})
    assert history.weights().aliases == {"head": "embed"}
    history.commit(write_checkpoint(tmp_path / "head", {"head": embed + 1}, 0))
    assert torch.equal(history.weights().tensor("embed"), embed + 1)


def test_weights_in_memory_are_copied(tmp_path: Path) -> None:
    history = History.init(tmp_path / "history", TENSORS)
    assert history.base.copied
    assert [path.name for path in (history.folder / "base").iterdir()] == ["model.safetensors"]


def test_a_single_file_is_a_base_too(base: Path, tmp_path: Path) -> None:
    file = base / "0.safetensors"
    assert History.init(tmp_path / "one", file).base.path == "../base/0.safetensors"
    assert History.init(tmp_path / "two", file, copy=True).base.copied


def test_init_again_says_where_the_base_is_now(base: Path, tmp_path: Path) -> None:
    history = History.init(tmp_path / "history", base)
    moved = tmp_path / "elsewhere" / "model"
    moved.parent.mkdir()
    shutil.move(base, moved)
    assert History.init(history.folder, moved).base.path == "../elsewhere/model"
    assert History.init(history.folder, moved, copy=True).base.copied
    with pytest.raises(HistoryError, match="other weights"):
        History.init(history.folder, {"a": torch.zeros(1)})


def test_a_whole_copy_from_an_init_that_was_killed_is_taken(base: Path, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "history" / "base")
    assert History.init(tmp_path / "history", base, copy=True).base.copied


def test_a_base_of_someone_else_is_never_replaced(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "history"
    folder.mkdir()
    write_checkpoint(folder / "base", {"other": torch.zeros(3)}, 0)
    with pytest.raises(HistoryError, match="other weights"):
        History.init(folder, base, copy=True)
    assert not (folder / "history.json").exists()


def test_a_folder_with_deltas_is_refused(base: Path, tmp_path: Path) -> None:
    (tmp_path / "history" / "deltas").mkdir(parents=True)
    (tmp_path / "history" / "deltas" / "precious").touch()
    with pytest.raises(HistoryError, match="deltas"):
        History.init(tmp_path / "history", base)


def test_the_checkpoint_itself_is_no_place(base: Path) -> None:
    with pytest.raises(HistoryError, match="beside it"):
        History.init(base, base)
    assert {path.name for path in base.iterdir()} == {"config.json", *os.listdir(base)}


def test_faults_are_named(base: Path, tmp_path: Path) -> None:
    with pytest.raises(NotACheckpointError):
        History.init(tmp_path / "history", tmp_path / "nowhere")
    with pytest.raises(OutputError):
        History.init(base / "config.json", base)
    with pytest.raises(HistoryError, match="init"):
        History.open(tmp_path)
    with pytest.raises(HistoryError, match="init"):
        History.open(tmp_path / "nowhere")
