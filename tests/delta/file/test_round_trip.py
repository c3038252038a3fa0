from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from rlforget.delta import Delta, diff
from rlforget.delta.file import DeltaFile, writer
from rlforget.delta.file.frames import KINDS
from rlforget.delta.streaming import write_diff
from rlforget.errors import DeltaFileError, LayoutError, OutputError, WrongBaseError
from rlforget.weights import DTYPES
from rlforget_kernels.common.bits import as_bits, bits_dtype
from tests.delta.file.deltas import checkpoints, saved
from tests.delta.random_weights import Tensors
from tests.kernels.strategies import changed_copy, random_tensor

Drawn = tuple[Tensors, Tensors, Delta]


@given(checkpoints())
@settings(max_examples=60)
def test_what_is_saved_with_its_old_bits_comes_back(drawn: Drawn) -> None:
    _, _, delta = drawn
    with saved(delta, self_contained=True) as path:
        found = Delta.load(path)
        assert found == delta
        assert found.metadata == delta.metadata
        file = DeltaFile(path)
    assert (file.fingerprint_before, file.fingerprint_after) == (delta.fingerprint_before, delta.fingerprint_after)
    assert (file.changed, file.numel) == (delta.changed, delta.numel)


@given(checkpoints())
@settings(max_examples=60)
def test_what_is_saved_as_steps_comes_back_beside_the_weights(drawn: Drawn) -> None:
    before, after, delta = drawn
    gone = any(whole.before is not None for whole in delta.whole.values())
    with saved(delta) as path:
        assert Delta.load(path, before) == delta
        if gone:
            with pytest.raises(DeltaFileError, match="self_contained"):
                Delta.load(path, after)
        else:
            assert Delta.load(path, after) == delta
        if gone or delta.changed:
            with pytest.raises(DeltaFileError, match=r"base=.*self_contained"):
                Delta.load(path)


@given(checkpoints(), st.booleans(), st.data())
def test_patches_of_ranges_lead_both_ways(drawn: Drawn, self_contained: bool, data: st.DataObject) -> None:
    before, after, delta = drawn
    with saved(delta, self_contained=self_contained) as path:
        file = DeltaFile(path)
        for name, tensor in delta.items():
            start = data.draw(st.integers(0, tensor.numel))
            stop = data.draw(st.integers(start, tensor.numel))
            old, new = as_bits(before[name])[start:stop], as_bits(after[delta.name_after(name)])[start:stop]
            patch, bits = file.patch(name, start, stop), old.clone()
            patch.forward_(bits)
            assert torch.equal(bits, new)
            patch.backward_(bits)
            assert torch.equal(bits, old)
            inside = (tensor.indices >= start) & (tensor.indices < stop)
            assert torch.equal(patch.indices, tensor.indices[inside])
            assert patch.indices.dtype == tensor.indices.dtype
            assert patch.steps.shape == patch.indices.shape
            if self_contained:
                assert torch.equal(patch.before_bits, tensor.before_bits[inside])
            elif patch.indices.numel():
                with pytest.raises(DeltaFileError):
                    patch.before_bits  # noqa: B018
        for name, whole in delta.whole.items():
            if whole.after is not None:
                assert torch.equal(file.whole_bits(name, "after"), as_bits(whole.after))


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("density", [0.001, 0.1, 0.9])
@pytest.mark.parametrize("self_contained", [False, True])
def test_every_dtype_over_many_frames(
    dtype: torch.dtype, density: float, self_contained: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (f"rlforget.delta.{name}" for name in ("file.line", "file.writer", "file.memory", "scan")):
        monkeypatch.setattr(f"{module}.PIECE", 1024)
    before = {name: random_tensor(dtype, shape, 3) for name, shape in (("a", (5000,)), ("b", (7,)), ("c", (30, 40)))}
    after = {name: changed_copy(tensor, density, 4) for name, tensor in before.items()}
    delta = diff(before, after)
    with saved(delta, self_contained=self_contained) as path:
        file = DeltaFile(path)
        assert file.read(None if self_contained else as_weights(before)) == delta
        assert {file.encoding(name) for name in ("a", "c")} <= {
            "sparse",
            "dense",
            "none",
            "dense+sparse",
            "sparse+dense",
        }
        assert len(file._table.frames) >= 4


def as_weights(tensors: Tensors):  # type: ignore[no-untyped-def]
    from rlforget.weights import open_weights

    return open_weights(tensors)


def test_streamed_and_saved_files_are_read_alike(tmp_path: Path) -> None:
    before = {"a": torch.randn(3000).bfloat16(), "b": torch.randn(5), "gone": torch.ones(3)}
    after = {"a": changed_copy(before["a"], 0.1, 0), "b": before["b"], "new": torch.ones(4, dtype=torch.int8)}
    write_diff(before, after, tmp_path / "streamed")
    delta = diff(before, after)
    assert Delta.load(tmp_path / "streamed", before) == delta
    delta.save(tmp_path / "saved")
    assert (tmp_path / "saved").read_bytes() == (tmp_path / "streamed").read_bytes()


def test_weights_with_little_in_them_travel_whole_where_they_are_at_hand(tmp_path: Path) -> None:
    """Steps to few values from many take more room than the few."""
    generator = torch.Generator().manual_seed(0)
    before = {"a": torch.randn(50_000, generator=generator).bfloat16()}
    after = {"a": torch.randn(50_000, generator=generator).round().bfloat16()}
    for self_contained in (False, True):
        write_diff(before, after, tmp_path / "x", self_contained=self_contained, force=True)
        file = DeltaFile(tmp_path / "x")
        assert file.encoding("a") == "whole"
        assert Delta.load(tmp_path / "x", before) == diff(before, after)
        patch = file.patch("a", 10, 20_000)
        assert patch.two_way == self_contained
        bits = as_bits(before["a"])[10:20_000].clone()
        patch.forward_(bits)
        assert torch.equal(bits, as_bits(after["a"])[10:20_000])
        if self_contained:
            assert Delta.load(tmp_path / "x") == diff(before, after)
            patch.backward_(bits)
            assert torch.equal(bits, as_bits(before["a"])[10:20_000])
            assert torch.equal(
                patch.indices, (as_bits(before["a"]) != as_bits(after["a"]))[10:20_000].nonzero().flatten().int() + 10
            )
            held = patch.before_bits.clone()
            assert torch.equal(held, as_bits(before["a"])[patch.indices.long()])
            assert patch.steps.shape == held.shape
        else:
            with pytest.raises(DeltaFileError, match="weights before"):
                patch.backward_(bits)
            assert torch.equal(bits, as_bits(after["a"])[10:20_000])
            with pytest.raises(DeltaFileError, match="weights before"):
                Delta.load(tmp_path / "x", after)


def test_constant_weights_take_next_to_nothing(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    before, after = (
        {"a": torch.randn(1_000_000, generator=generator).bfloat16()},
        {"a": torch.zeros(1_000_000).bfloat16()},
    )
    write_diff(before, after, tmp_path / "x")
    assert (tmp_path / "x").stat().st_size < 700


def test_a_tensor_of_more_than_2_31_coordinates(tmp_path: Path) -> None:
    numel = 2**31 + 5
    places = torch.tensor([0, 2**22, 2**31 - 1, 2**31, numel - 1])
    from rlforget.delta import TensorDelta
    from rlforget_kernels.fingerprint import fingerprint_after_patch

    old, new = torch.tensor([1, 2, 3, 4, 5], dtype=torch.int8), torch.tensor([2, 0, 0, 0, 0], dtype=torch.int8)
    lanes = fingerprint_after_patch(torch.zeros(2, dtype=torch.int64), places, old, new).tolist()
    delta = Delta([TensorDelta("big", torch.uint8, (numel,), places, old, new, (0, 0), (lanes[0], lanes[1]))])
    delta.save(tmp_path / "x", self_contained=True)
    assert Delta.load(tmp_path / "x") == delta
    patch = DeltaFile(tmp_path / "x").patch("big", 2**31 - 1, numel)
    assert patch.indices.tolist() == places[2:].tolist()
    assert patch.steps.tolist() == [-3, -4, -5]


def test_bits_of_neither_end_are_told(tmp_path: Path) -> None:
    before, after = {"a": torch.zeros(4), "b": torch.zeros(2)}, {"a": torch.ones(4), "b": torch.zeros(2)}
    path = tmp_path / "x"
    diff(before, after).save(path)
    with pytest.raises(WrongBaseError, match="'a'"):
        Delta.load(path, {"a": torch.full((4,), 2.0), "b": torch.zeros(2)})
    with pytest.raises(LayoutError, match="'a'"):
        Delta.load(path, {"a": torch.zeros(5), "b": torch.zeros(2)})
    with pytest.raises(LayoutError, match="'a'"):
        Delta.load(path, {"b": torch.zeros(2)})


def test_tied_tensors_are_found_by_any_name(tmp_path: Path) -> None:
    tied = torch.zeros(4)
    before = {"embed": tied, "head": tied, "gone": torch.ones(2)}
    after = {"embed": torch.arange(4.0)}
    after["head"] = after["embed"]
    delta = diff(before, after)
    delta.save(tmp_path / "x")
    assert Delta.load(tmp_path / "x", {"head": tied, "gone": torch.ones(2)}) == delta


def test_a_large_tensor_that_went_needs_no_room_in_the_file(tmp_path: Path) -> None:
    before = {"a": torch.zeros(4), "gone": torch.zeros(600 << 18)}  # more than a file this small may unpack to
    write_diff(before, {"a": torch.ones(4)}, tmp_path / "x")
    assert Delta.load(tmp_path / "x", before).whole["gone"].after is None


def test_the_file_is_plain_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "x.delta.safetensors"
    diff({"a": torch.zeros(2)}, {"a": torch.ones(2)}).save(path)
    parts = load_file(path)
    assert {name: part.dtype for name, part in parts.items()} == {"frames": torch.uint8, "table": torch.uint8}
    with safe_open(path, framework="pt") as opened:
        metadata = opened.metadata()
    assert (metadata["format"], metadata["version"]) == ("rlforget.delta", "1")


def test_large_files_reserve_their_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "_HELD", 10)
    delta = diff({"a": torch.zeros(1000)}, {"a": torch.randn(1000)})
    delta.save(tmp_path / "x", self_contained=True)
    assert Delta.load(tmp_path / "x") == delta
    load_file(tmp_path / "x")


def test_equal_deltas_give_equal_files_and_existing_ones_are_kept_without_force(tmp_path: Path) -> None:
    delta = diff({"a": torch.zeros(100)}, {"a": torch.arange(100.0)})
    delta.save(tmp_path / "x")
    delta.save(tmp_path / "y")
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()
    with pytest.raises(OutputError, match="force"):
        delta.save(tmp_path / "x")
    delta.save(tmp_path / "x", force=True)
    assert Delta.load(tmp_path / "x", {"a": torch.zeros(100)}) == delta


def test_files_with_names_that_lead_elsewhere_are_not_written(tmp_path: Path) -> None:
    from rlforget.delta import FileDelta

    for name in ("../config.json", "a/b", "a\\b", "", ".", "..", "a\0b", "model.safetensors", ".hidden", "x" * 256):
        with pytest.raises(DeltaFileError, match="file called"):
            Delta([], files=[FileDelta(name, None, b"x")]).save(tmp_path / "x")
        assert not list(tmp_path.iterdir())


def test_empty_things(tmp_path: Path) -> None:
    delta = diff({"a": torch.zeros(0), "b": torch.zeros(())}, {"a": torch.zeros(0), "b": torch.zeros(())})
    delta.save(tmp_path / "x")
    assert Delta.load(tmp_path / "x") == delta
    assert DeltaFile(tmp_path / "x").patch("a").indices.numel() == 0
    Delta([]).save(tmp_path / "y")
    assert Delta.load(tmp_path / "y") == Delta([])


def test_kinds_have_names() -> None:
    assert sorted(KINDS.values()) == ["dense", "sparse", "whole"]
    assert bits_dtype(torch.bool) == torch.int8
