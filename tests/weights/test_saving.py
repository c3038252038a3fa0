from __future__ import annotations

import json
import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from rlforget.errors import LayoutError, OutputError
from rlforget.weights import DTYPES, open_weights, save_checkpoint
from rlforget.weights.atomic import new_file, new_folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A sharded checkpoint with its other files."""
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"b": torch.randn(5), "a": torch.randn(3, 2)}, folder / "1.safetensors", metadata={"format": "pt"})
    save_file({"c": torch.tensor(True)}, folder / "2.safetensors")
    index = {"weight_map": {"a": "1.safetensors", "b": "1.safetensors", "c": "2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("tokens")
    (folder / "pytorch_model.bin").write_bytes(b"stale")
    (folder / "old.safetensors").write_bytes(b"stale")
    (folder / "checkpoint-5").mkdir()
    return folder


@pytest.fixture
def tiny_files() -> Iterator[None]:
    """Let no file grow beyond 300 bytes: a disk that fills up while a file is written."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_same_weights_give_the_same_bytes_and_the_other_files(model: Path, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "copy", model, like=model)
    kept = ["1.safetensors", "2.safetensors", "config.json", "model.safetensors.index.json", "tokenizer.json"]
    assert sorted(file.name for file in (tmp_path / "copy").iterdir()) == kept
    for name in kept:
        assert (tmp_path / "copy" / name).read_bytes() == (model / name).read_bytes()
    assert (tmp_path / "copy").stat().st_mode == (tmp_path / "model").stat().st_mode


def test_new_values_go_into_the_old_shards(model: Path, tmp_path: Path) -> None:
    new = {"a": torch.randn(2, 3).t(), "b": torch.zeros(5), "c": torch.tensor(False)}
    save_checkpoint(tmp_path / "out", new, like=model)
    written = load_file(tmp_path / "out" / "1.safetensors") | load_file(tmp_path / "out" / "2.safetensors")
    assert all(torch.equal(written[name], new[name]) for name in new)


def test_one_file_like_another(model: Path, tmp_path: Path) -> None:
    new = {"b": torch.ones(5), "a": torch.ones(3, 2)}
    save_checkpoint(tmp_path / "x.safetensors", new, like=model / "1.safetensors")
    assert torch.equal(load_file(tmp_path / "x.safetensors")["a"], new["a"])


def test_ties_are_noted_as_save_model_notes_them(tmp_path: Path) -> None:
    shared = torch.randn(4)
    save_checkpoint(tmp_path / "out", {"embed": shared, "norm": torch.ones(2), "head": shared})
    written = open_weights(tmp_path / "out")
    assert (written.names(), written.aliases) == (["embed", "norm"], {"head": "embed"})


def test_other_tensors_than_those_of_the_pattern_are_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(LayoutError, match="2 missing: b, c"):
        save_checkpoint(tmp_path / "out", {"a": torch.zeros(3, 2)}, like=model)
    assert not (tmp_path / "out").exists()


names = (
    st.text(min_size=1, max_size=8)
    .filter(lambda name: name != "__metadata__")
    .map(lambda name: name.encode("utf-8", "replace").decode())
)


@given(st.dictionaries(names, st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 3), max_size=3)), max_size=6))
@settings(max_examples=60, deadline=None)
def test_fresh_checkpoints_hold_any_tensors_under_any_names(metas: dict[str, tuple[torch.dtype, list[int]]]) -> None:
    tensors = {name: torch.randint(0, 2, shape).to(dtype) for name, (dtype, shape) in metas.items()}
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(Path(folder) / "out", tensors)
        read = load_file(Path(folder) / "out" / "model.safetensors")
        assert read.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert read[name].dtype == tensor.dtype
            assert torch.equal(read[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))
        mapped = open_weights(Path(folder) / "out")
        assert all(mapped.tensor(name).data_ptr() % tensor.itemsize == 0 for name, tensor in tensors.items())


def test_existing_outputs_are_kept_without_force(model: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(OutputError, match="existing file or folder"):
        save_checkpoint(tmp_path / "there", model, like=model)
    assert list((tmp_path / "there").iterdir()) == []


def test_force_replaces_a_checkpoint_even_the_source_itself(model: Path) -> None:
    new = {"a": torch.ones(3, 2), "b": torch.ones(5), "c": torch.tensor(False)}
    save_checkpoint(model, new, like=model, force=True)
    assert torch.equal(open_weights(model).tensor("b"), torch.ones(5))
    assert not list(model.parent.glob(".rlforget*"))


def test_force_never_replaces_other_folders_files_or_the_sources_parent(model: Path, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "diary.txt").write_text("dear")
    (tmp_path / "file").write_text("text")
    (tmp_path / "link").symlink_to(model)
    for taken in ("notes", "file", "link"):
        with pytest.raises(OutputError):
            save_checkpoint(tmp_path / taken, model, like=model, force=True)
    (tmp_path / "other.safetensors").write_bytes(b"")
    with pytest.raises(OutputError, match="apart from the source"):
        save_checkpoint(tmp_path, model, like=model, force=True)
    assert (tmp_path / "notes" / "diary.txt").read_text() == "dear"
    assert (model / "config.json").exists()


def test_missing_parent_and_unwritable_place_are_named(model: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="Create it first"):
        save_checkpoint(tmp_path / "no" / "out", model, like=model)
    with pytest.raises(OutputError, match="a place that can be written"):
        save_checkpoint("/proc/out", model, like=model)


@pytest.mark.usefixtures("tiny_files")
def test_full_disk_leaves_nothing_behind(model: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    with pytest.raises(OutputError, match="File too large"):
        save_checkpoint(tmp_path / "out", {"big": torch.zeros(1000)})
    with pytest.raises(OutputError, match="File too large"), new_file(tmp_path / "file") as file:
        file.write(bytes(1000))
    assert sorted(tmp_path.iterdir()) == before


def test_interrupt_leaves_nothing_behind_and_keeps_the_old(model: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    old = (model / "1.safetensors").read_bytes()

    def interrupted(stream: BinaryIO) -> None:
        stream.write(b"half")
        raise KeyboardInterrupt

    with (
        pytest.raises(KeyboardInterrupt),
        new_folder(model, force=True) as folder,
        open(folder / "1.safetensors", "xb") as file,
    ):
        interrupted(file)
    with pytest.raises(KeyboardInterrupt), new_file(tmp_path / "file") as file:
        interrupted(file)
    assert sorted(tmp_path.iterdir()) == before
    assert (model / "1.safetensors").read_bytes() == old


def test_file_may_be_replaced_with_force_only(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(OutputError), new_file(path):
        pass
    assert path.read_bytes() == b"old"
    with new_file(path, force=True) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="a folder"), new_file(tmp_path / "folder", force=True):
        pass
