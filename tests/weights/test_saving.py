from __future__ import annotations

import json
import os
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from rlforget.errors import LayoutError, OutputError
from rlforget.weights import DTYPES, open_weights, save_checkpoint, saving
from rlforget.weights.atomic import check_new_folder, new_file, new_folder
from rlforget.weights.opening import open_checkpoint
from rlforget.weights.raw_io import write_fully
from rlforget.weights.saving import Placed, save_like


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


def alone(model: Path) -> Path:
    """The checkpoint without what lies beside it."""
    for name in ("pytorch_model.bin", "old.safetensors"):
        (model / name).unlink()
    (model / "checkpoint-5").rmdir()
    return model


def test_force_replaces_a_checkpoint_even_the_source_itself(model: Path) -> None:
    alone(model)
    new = {"a": torch.ones(3, 2), "b": torch.ones(5), "c": torch.tensor(False)}
    save_checkpoint(model, new, like=model, force=True)
    assert torch.equal(open_weights(model).tensor("b"), torch.ones(5))
    assert not list(model.parent.glob(".rlforget*"))


BESIDE = (
    "optimizer.pt",
    "old.safetensors",
    "x.delta.safetensors",
    "notes/thesis.txt",
    ".rlforget/000001.undo.safetensors",
)


@pytest.mark.parametrize("beside", [*BESIDE, ".git/"])
def test_force_deletes_nothing_that_lies_beside_a_checkpoint(model: Path, tmp_path: Path, beside: str) -> None:
    place = alone(model) / beside
    place.parent.mkdir(exist_ok=True)
    place.mkdir() if beside.endswith("/") else place.write_text("mine")
    for path, weights in ((model, model), (model, {"a": torch.zeros(1)})):
        with pytest.raises(OutputError, match=beside.rstrip("/")) as refused:
            save_checkpoint(path, weights, like=weights if weights is model else None, force=True)
        assert "--forget" in refused.value.fix
        with pytest.raises(OutputError, match="nothing else"):
            check_new_folder(path, force=True)
    assert place.exists()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model"]


def test_force_replaces_what_the_new_folder_brings_too(model: Path) -> None:
    alone(model)
    (model / "old.safetensors").write_bytes(b"stale")
    (model / "notes").mkdir()
    (model / "notes" / "a.txt").write_text("old")
    for name in (".gitattributes", "README.md"):
        (model / name).write_text("of the old one")
    with new_folder(model, force=True) as draft:
        (draft / "notes").mkdir()
        for name in ("old.safetensors", "notes/a.txt"):
            (draft / name).write_text("new")
    assert (model / "notes" / "a.txt").read_text() == "new"
    assert not (model / "README.md").exists()


def test_force_takes_deltas_for_no_checkpoint(model: Path, tmp_path: Path) -> None:
    for name in ("1.delta.safetensors", "2.delta.safetensors"):
        (tmp_path / name).write_text("mine")
        many = tmp_path / "many"
        many.mkdir(exist_ok=True)
        (many / name).write_text("mine")
        with pytest.raises(OutputError, match="a checkpoint folder to replace"):
            save_checkpoint(many, model, like=model, force=True)
    assert len(list(many.iterdir())) == 2


def test_an_output_lies_apart_from_its_source(model: Path, tmp_path: Path) -> None:
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    (model / "1.safetensors").rename(blobs / "model.safetensors")
    (model / "1.safetensors").symlink_to(blobs / "model.safetensors")
    (tmp_path / "name").symlink_to(tmp_path / "model")
    for out in (blobs, model / "sub", tmp_path / "name" / "sub"):
        with pytest.raises(OutputError, match="a place apart from"):
            save_checkpoint(out, model, like=model, force=True)
    assert open_weights(model).tensor("a").shape == (3, 2)


def test_force_never_replaces_other_folders_files_or_the_sources_parent(model: Path, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "diary.txt").write_text("dear")
    (tmp_path / "file").write_text("text")
    (tmp_path / "link").symlink_to(model)
    for taken in ("notes", "file", "link"):
        with pytest.raises(OutputError):
            save_checkpoint(tmp_path / taken, model, like=model, force=True)
    (tmp_path / "other.safetensors").write_bytes(b"")
    with pytest.raises(OutputError, match="a place apart from"):
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
    alone(model)
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


def test_no_thread_writes_on_when_a_save_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would write by the number of a descriptor that another file may have got meanwhile."""
    descriptors, unsound = set[int](), list[int]()

    def slowly(descriptor: int, buffer: memoryview, place: int) -> None:
        descriptors.add(descriptor)
        time.sleep(0.05)
        try:
            os.fstat(descriptor)
        except OSError:
            unsound.append(descriptor)
        write_fully(descriptor, buffer, place)

    monkeypatch.setattr(saving, "write_fully", slowly)
    monkeypatch.setattr(saving, "CHUNK", 100)
    source = {"a": torch.arange(10_000.0)}
    save_checkpoint(tmp_path / "model", source)

    def interrupted(done: int, total: int) -> None:
        raise KeyboardInterrupt

    checkpoint = open_checkpoint(tmp_path / "model")
    placed = [Placed("a", "a", "a")]
    with pytest.raises(KeyboardInterrupt):
        save_like(tmp_path / "out", checkpoint, checkpoint, placed, {}, progress=interrupted)
    time.sleep(0.2)
    assert descriptors
    assert unsound == []
    assert not (tmp_path / "out").exists()


def test_a_disk_that_takes_no_hints_is_written_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: int) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "posix_fadvise", refuses, raising=False)
    save_checkpoint(tmp_path / "model", {"a": torch.arange(10.0)})
    assert torch.equal(open_weights(tmp_path / "model").tensor("a"), torch.arange(10.0))


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
