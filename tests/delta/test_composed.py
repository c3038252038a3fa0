"""Weights composed with deltas on disk: written, checked and changed in place as checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rlforget.delta import apply, diff, revert
from rlforget.delta.composed import ComposedWeights
from rlforget.delta.in_place import write_difference
from rlforget.delta.layers import MemoryLayer
from rlforget.delta.patching import check_fits
from rlforget.errors import LayoutError, OutputError, WrongBaseError
from rlforget.weights import open_weights
from rlforget.weights.checkpoint import CheckpointWeights
from rlforget.weights.digest import lanes_of
from rlforget.weights.in_place import undo
from tests.delta.random_weights import Tensors, same_bits, write_checkpoint


def read(folder: Path) -> Tensors:
    weights = open_weights(folder)
    return {name: weights.tensor(name).clone() for name in weights.names()}


def equal(a: Tensors, b: Tensors) -> bool:
    return a.keys() == b.keys() and all(same_bits(a[name], b[name]) for name in a)


BEFORE = {
    "embed": torch.arange(12.0).reshape(6, 2).bfloat16(),
    "gone": torch.tensor([1, 2, 3]),
    "kept": torch.zeros(5),
    "typed": torch.ones(4).bfloat16(),
    "tuned": torch.linspace(0, 1, 9),
}
AFTER = {
    "come": torch.full((2, 2), 7.0).half(),
    "embed": torch.arange(16.0).reshape(8, 2).bfloat16(),
    "kept": torch.zeros(5),
    "typed": torch.ones(4),
    "tuned": torch.linspace(0, 1, 9) + torch.tensor([0, 0, 1.0, 0, 0, 0, 0, -0.0, 2]),
}


@pytest.fixture(params=[0, 2], ids=["one file", "shards"])
def before(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    return write_checkpoint(tmp_path / "before", BEFORE, request.param)


@pytest.fixture
def after(tmp_path: Path) -> Path:
    folder = write_checkpoint(tmp_path / "after", AFTER, 0)
    (folder / "config.json").write_text('{"vocab_size": 8}')
    (folder / "tokenizer.json").write_text("more words")
    return folder


def test_tensors_come_go_and_change_shape_and_dtype(before: Path, after: Path, tmp_path: Path) -> None:
    delta = diff(before, after)
    assert {name: str(change) for name, change in delta.whole.items()} == {
        "come": "WholeDelta('come', None -> float16[2, 2])",
        "embed": "WholeDelta('embed', bfloat16[6, 2] -> bfloat16[8, 2])",
        "gone": "WholeDelta('gone', int64[3] -> None)",
        "typed": "WholeDelta('typed', bfloat16[4] -> float32[4])",
    }
    assert list(delta.files) == ["config.json", "tokenizer.json"]
    apply(before, delta, tmp_path / "there")
    assert equal(read(tmp_path / "there"), AFTER)
    assert (tmp_path / "there" / "config.json").read_text() == '{"vocab_size": 8}'
    assert (tmp_path / "there" / "tokenizer.json").read_text() == "more words"
    revert(tmp_path / "there", delta, tmp_path / "back")
    assert equal(read(tmp_path / "back"), BEFORE)
    assert sorted(p.name for p in (tmp_path / "back").iterdir()) == sorted(p.name for p in before.iterdir())
    if (before / "model.safetensors.index.json").is_file():
        index = json.loads((tmp_path / "there" / "model.safetensors.index.json").read_text())
        assert index["weight_map"].keys() == AFTER.keys()
        assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in AFTER.values())


def test_what_changes_more_than_bits_is_not_done_in_place(before: Path, after: Path) -> None:
    held = {path.name: path.read_bytes() for path in before.iterdir()}
    with pytest.raises(OutputError, match="'embed'"):
        apply(before, diff(before, after), in_place=True)
    assert {path.name: path.read_bytes() for path in before.iterdir() if path.is_file()} == held
    with pytest.raises(LayoutError, match="resizes"):
        apply(dict(BEFORE), diff(before, after))


def test_in_place_and_undone(tmp_path: Path) -> None:
    before = write_checkpoint(tmp_path / "model", BEFORE, 2)
    tuned = {**BEFORE, "tuned": AFTER["tuned"]}
    delta = diff(before, tuned)
    apply(before, delta, in_place=True)
    assert equal(read(before), tuned)
    with pytest.raises(WrongBaseError, match="is there already"):
        apply(before, delta, in_place=True)
    revert(before, delta, in_place=True)
    assert equal(read(before), BEFORE)
    undo(before)
    assert equal(read(before), tuned)
    undo(before)
    assert equal(read(before), BEFORE)


def test_an_output_is_named_once(tmp_path: Path) -> None:
    before = write_checkpoint(tmp_path / "model", BEFORE, 0)
    for out, in_place in ((None, False), (tmp_path / "out", True)):
        with pytest.raises(OutputError, match="in_place=True"):
            apply(before, diff(before, BEFORE), out, in_place=in_place)


def test_a_file_that_is_not_as_the_delta_expects_is_refused(before: Path, after: Path, tmp_path: Path) -> None:
    delta = diff(before, after)
    (before / "config.json").write_text('{"mine": 1}')
    with pytest.raises(WrongBaseError, match=r"config\.json"):
        apply(before, delta, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_single_file_takes_the_tensors_alone(before: Path, after: Path, tmp_path: Path) -> None:
    save_file(BEFORE, tmp_path / "weights.safetensors")
    apply(tmp_path / "weights.safetensors", diff(before, after), tmp_path / "out.safetensors")
    assert equal(load_file(tmp_path / "out.safetensors"), AFTER)


@pytest.mark.parametrize("head", ["the same bits", "bits of its own"])
def test_a_head_that_is_untied_or_tied(head: str, tmp_path: Path) -> None:
    embed = torch.arange(8.0).reshape(4, 2)
    loose = {"embed": embed + 1, "head": embed + (1 if head == "the same bits" else 2)}
    for name, tensors, noted in (("tied", {"embed": embed}, {"head": "embed"}), ("loose", loose, None)):
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "model.safetensors", metadata=noted)
    for before, after in (("tied", "loose"), ("loose", "tied")):
        delta = diff(tmp_path / before, tmp_path / after)
        for carry, start, end in ((apply, before, after), (revert, after, before)):
            out = tmp_path / f"{before} {carry.__name__}"
            carry(tmp_path / start, delta, out)
            made, wanted = open_weights(out), open_weights(tmp_path / end)
            assert all(same_bits(made.tensor(name), wanted.tensor(name)) for name in ("embed", "head"))


@pytest.mark.parametrize("shards", [0, 2])
def test_new_ties_are_noted_and_old_ones_follow_a_rename(shards: int, tmp_path: Path) -> None:
    states: dict[str, tuple[Tensors, dict[str, str]]] = {
        "tied": ({"embed": torch.ones(3), "norm": torch.zeros(2)}, {"head": "embed"}),
        "loose": ({"embed": torch.ones(3), "norm": torch.zeros(2)}, {}),
        "renamed": ({"stem": torch.ones(3), "norm": torch.zeros(2)}, {"head": "stem"}),
    }
    for name, (tensors, ties) in states.items():
        write_checkpoint(tmp_path / name, tensors, shards, ties)
    apply(tmp_path / "loose", diff(tmp_path / "loose", tmp_path / "tied"), tmp_path / "1")
    assert open_weights(tmp_path / "1").aliases == {"head": "embed"}
    delta = diff(tmp_path / "tied", tmp_path / "renamed", rename={"embed": "stem"})
    apply(tmp_path / "tied", delta, tmp_path / "2")
    assert open_weights(tmp_path / "2").aliases == {"head": "stem"}
    apply(tmp_path / "tied", diff(tmp_path / "tied", tmp_path / "tied"), tmp_path / "3")
    for file in (tmp_path / "tied").iterdir():
        assert (tmp_path / "3" / file.name).read_bytes() == file.read_bytes()


def test_what_changes_names_or_ties_is_not_done_in_place(tmp_path: Path) -> None:
    folder = tmp_path / "tied"
    folder.mkdir()
    embed = torch.arange(8.0).reshape(4, 2)
    save_file({"embed": embed}, folder / "model.safetensors", metadata={"head": "embed"})
    held = (folder / "model.safetensors").read_bytes()
    untied = {"embed": embed, "head": embed + 1}
    for delta in (diff(folder, untied), diff(folder, {"stem": embed}, rename={"embed": "stem"})):
        with pytest.raises(OutputError, match="in place"):
            check_fits(folder, delta, in_place=True)
        with pytest.raises(OutputError, match="in place"):
            apply(folder, delta, in_place=True)
    with pytest.raises(OutputError, match="in place"):
        write_difference(CheckpointWeights(folder), open_weights(untied))
    swapped = write_checkpoint(tmp_path / "swap", {"a": torch.zeros(2), "b": torch.ones(2)}, 0)
    names = diff(swapped, {"b": torch.zeros(2), "a": torch.ones(2)}, rename={"a": "b", "b": "a"})
    with pytest.raises(OutputError, match="in place"):
        apply(swapped, names, in_place=True)
    assert (folder / "model.safetensors").read_bytes() == held


def test_a_dry_run_in_place_finds_what_would_stop_it(before: Path, after: Path) -> None:
    with pytest.raises(OutputError, match="in place"):
        check_fits(before, diff(before, after), in_place=True)
    tuned = diff(before, {**BEFORE, "tuned": AFTER["tuned"]})
    check_fits(before, tuned, in_place=True)
    shard = next(before.glob("*.safetensors"))
    shard.rename(before / "elsewhere")
    shard.symlink_to(before / "elsewhere")
    with pytest.raises(OutputError, match="link"):
        check_fits(before, tuned, in_place=True)


def test_a_checkpoint_that_was_written_since_it_was_loaded_is_kept(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", {"a": torch.zeros(3)}, 0)
    mine = {"a": torch.zeros(3)}
    held = {"a": lanes_of(open_weights(mine), "a")}
    mine["a"][1] = 1
    apply(folder, diff(folder, {"a": torch.tensor([1.0, 0, 0])}), in_place=True)  # someone else
    with pytest.raises(WrongBaseError, match="written since"):
        write_difference(CheckpointWeights(folder), open_weights(mine), held=held)
    assert read(folder)["a"].tolist() == [1, 0, 0]
    undo(folder)
    write_difference(CheckpointWeights(folder), open_weights(mine), held=held)
    assert equal(read(folder), mine)


def test_weights_that_are_only_read_are_not_changed(before: Path) -> None:
    tuned = {**BEFORE, "tuned": AFTER["tuned"]}
    there = ComposedWeights(open_weights(before), [MemoryLayer(diff(before, tuned))])
    with pytest.raises(OutputError, match="weights that are read"):
        revert(there, diff(before, tuned))


def test_a_delta_beside_the_weights_is_no_weights(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    save_file({"a": torch.zeros(2)}, folder / "adapter_model.safetensors")
    diff(folder, {"a": torch.ones(2)}).save(folder / "x.delta.safetensors")
    assert read(folder)["a"].tolist() == [0, 0]
