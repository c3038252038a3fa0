"""Weights composed with deltas on disk: written, checked and changed in place as checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rlforget.delta import apply, diff, revert
from rlforget.errors import LayoutError, OutputError, WrongBaseError
from rlforget.weights import open_weights
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
    with pytest.raises(WrongBaseError, match="holds the new bits already"):
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
