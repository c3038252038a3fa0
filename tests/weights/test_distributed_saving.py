"""Folders of torch.distributed.checkpoint, written: as torch reads them, whole or not at all, like their base."""

from __future__ import annotations

import random
import tempfile
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed import checkpoint as dcp

import rlforget as rf
from rlforget.errors import LayoutError, NotACheckpointError, OutputError, WrongBaseError
from rlforget.weights import DTYPES, distributed_saving, open_weights, save_checkpoint
from tests.delta.random_weights import Tensors, names, pairs, random_tensor, same_bits, shapes
from tests.weights.chunked_saves import ChunkPlanner, cut_at_random, save


def loaded(folder: Path, like: Tensors) -> Tensors:
    """Return what torch reads under `model`."""
    state = {"model": {name: torch.empty_like(tensor) for name, tensor in like.items()}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.load(state, checkpoint_id=folder, no_dist=True)
    return state["model"]


@pytest.fixture
def tensors() -> Tensors:
    return {"w": torch.arange(24.0).reshape(4, 6), "b": torch.ones(3, dtype=torch.bfloat16), "n": torch.tensor(7)}


@pytest.fixture
def base(tensors: Tensors, tmp_path: Path) -> Path:
    """A model in two chunks a tensor, with another file and an optimizer."""
    rng = random.Random(0)
    state = {"model": tensors, "optimizer": {"step": 3, "moment": torch.ones(2)}}
    folder = save(tmp_path / "base", state, ChunkPlanner(lambda _, shape: cut_at_random(shape, rng, 1)))
    (folder / "config.json").write_text("{}")
    return folder


@settings(max_examples=10)  # folders of many files
@given(
    st.dictionaries(
        names,
        st.tuples(st.sampled_from(DTYPES), shapes),
        min_size=1,
        max_size=4,
    ),
    st.sampled_from([12, 64]),
    st.integers(0, 2**32),
)
def test_torch_reads_what_is_written_in_chunks_of_any_size(
    metas: dict[str, tuple[torch.dtype, tuple[int, ...]]], most: int, seed: int
) -> None:
    rng = random.Random(seed)
    tensors = {name: random_tensor(dtype, shape, rng) for name, (dtype, shape) in metas.items()}
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as place:
        patch.setattr(distributed_saving, "_CHUNK_BYTES", most)
        save_checkpoint(Path(place) / "x", tensors, distributed=True)
        found = loaded(Path(place) / "x", tensors)
        assert all(same_bits(found[name], tensor) for name, tensor in tensors.items())
        weights = open_weights(Path(place) / "x")
        assert all(same_bits(weights.tensor(name), tensor) for name, tensor in tensors.items())


@settings(max_examples=10)  # folders that are synced
@given(pairs(), st.booleans(), st.integers(0, 2**32))
def test_a_delta_leads_there_and_back(pair: tuple[Tensors, Tensors], nested: bool, seed: int) -> None:
    rng = random.Random(seed)
    before, after = ({"one more": torch.ones(2), **tensors} for tensors in pair)
    with tempfile.TemporaryDirectory() as place:
        folders = []
        for number, tensors in enumerate((before, after)):
            planner = ChunkPlanner(lambda _, shape: cut_at_random(shape, rng, 3))
            state = {"model": tensors} if nested else tensors
            folders.append(save(Path(place) / str(number), state, planner, sync_files=False))
        file = Path(place) / "x.delta.safetensors"
        rf.write_diff(*folders, file, self_contained=True)
        for start, step, end in ((folders[0], rf.apply, after), (folders[1], rf.revert, before)):
            out = Path(place) / step.__name__
            step(start, file, out=out)
            assert rf.diff(out, end).empty
            assert open_weights(out).prefix == open_weights(start).prefix


def test_a_folder_is_written_like_its_base(base: Path, tensors: Tensors, tmp_path: Path) -> None:
    tuned = {**tensors, "w": tensors["w"] + 1}
    rf.apply(base, rf.diff(base, tuned), out=tmp_path / "out")
    assert all(same_bits(loaded(tmp_path / "out", tuned)[name], tensor) for name, tensor in tuned.items())
    assert (tmp_path / "out" / "config.json").read_text() == "{}"
    assert open_weights(tmp_path / "out").left_out == ()  # an optimizer's moments are not of these weights
    save_checkpoint(tmp_path / "again", tuned, like=base)
    written = [{file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("out", "again")]
    assert written[0] == written[1]
    with pytest.raises(LayoutError):
        save_checkpoint(tmp_path / "other", {"w": torch.ones(1)}, like=base)


def test_a_delta_between_the_formats(base: Path, tensors: Tensors, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "plain", {**tensors, "b": tensors["b"] * 2})
    delta = rf.diff(base, tmp_path / "plain")
    assert delta.changed == 3
    rf.revert(tmp_path / "plain", delta, out=tmp_path / "back")
    assert rf.diff(tmp_path / "back", base).stats().total.changed == 0
    assert (tmp_path / "back" / "model.safetensors").exists()


def test_a_tied_tensor_is_written_under_each_name(tmp_path: Path) -> None:
    shared = torch.arange(6.0)
    tied = {"head": shared, "embed": shared, "w": torch.ones(2)}
    save_checkpoint(tmp_path / "x", tied, distributed=True)
    assert sorted(open_weights(tmp_path / "x").names()) == ["embed", "head", "w"]
    delta = rf.diff(tied, {**tied, "head": shared + 1, "embed": shared + 1})
    rf.apply(tmp_path / "x", delta, out=tmp_path / "y")
    assert torch.equal(open_weights(tmp_path / "y").tensor("embed"), shared + 1)
    assert torch.equal(open_weights(tmp_path / "y").tensor("head"), shared + 1)


def test_in_place_is_refused_by_name(base: Path, tensors: Tensors) -> None:
    before = {file.name: file.read_bytes() for file in base.iterdir()}
    delta = rf.diff(base, {**tensors, "w": tensors["w"] + 1})
    with pytest.raises(OutputError, match=r"only written anew. Write a new folder"):
        rf.apply(base, delta, in_place=True)
    assert {file.name: file.read_bytes() for file in base.iterdir()} == before


def test_a_wrong_base_leaves_nothing(base: Path, tensors: Tensors, tmp_path: Path) -> None:
    other = {**tensors, "w": tensors["w"] + 1}
    there = sorted(tmp_path.iterdir())
    for delta in (rf.diff(other, {**other, "w": other["w"] + 1}), _without_old_bits(other, tmp_path)):
        with pytest.raises(WrongBaseError):
            rf.apply(base, delta, out=tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == sorted([*there, tmp_path / "x.delta.safetensors"])


def _without_old_bits(other: Tensors, folder: Path) -> Path:
    rf.write_diff(other, {**other, "w": other["w"] * 3}, folder / "x.delta.safetensors")
    return folder / "x.delta.safetensors"


def test_an_interrupt_comes_through_and_leaves_nothing(
    base: Path, tensors: Tensors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(distributed_saving._Taker, "take", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path / "out", tensors, like=base)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base"]


def test_what_may_be_replaced(base: Path, tensors: Tensors, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"more in the same files, e.g. 'optimizer"):
        save_checkpoint(base, tensors, like=base, force=True)
    save_checkpoint(tmp_path / "alone", tensors, distributed=True)
    with pytest.raises(OutputError, match="nothing there yet"):
        save_checkpoint(tmp_path / "alone", tensors, distributed=True)
    new = {**tensors, "w": tensors["w"] + 1}
    save_checkpoint(tmp_path / "alone", new, distributed=True, force=True)
    assert rf.diff(tmp_path / "alone", new).empty
    save_checkpoint(tmp_path / "alone", tensors, force=True)
    assert [file.name for file in (tmp_path / "alone").iterdir()] == ["model.safetensors"]


def test_nothing_to_read_as_a_pattern(tmp_path: Path, tensors: Tensors) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "__0_0.distcp").write_bytes(b"")
    with pytest.raises(NotACheckpointError, match="did not finish"):
        save_checkpoint(tmp_path / "out", tensors, like=tmp_path / "x")
