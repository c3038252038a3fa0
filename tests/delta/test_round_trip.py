from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlforget.delta import Delta, apply, diff, revert
from rlforget.weights import open_weights
from rlforget_kernels.fingerprint import fingerprint
from tests.delta.random_weights import Tensors, bits_of, pairs, same_bits, write_checkpoint

many = settings(max_examples=60, deadline=None)


@given(pairs())
@many
def test_a_delta_is_every_coordinate_whose_bits_differ(pair: tuple[Tensors, Tensors]) -> None:
    before, after = pair
    delta = diff(before, after)
    assert list(delta) == list(before)
    for name, tensor in delta.items():
        old, new = (bits_of(side[name]).view(-1, before[name].itemsize) for side in pair)
        expected = (old != new).any(dim=1).nonzero().flatten() if old.numel() else torch.empty(0, dtype=torch.int64)
        assert torch.equal(tensor.indices, expected.to(torch.int32))
        assert same_bits(tensor.before, before[name].reshape(-1)[expected])
        assert same_bits(tensor.after, after[name].reshape(-1)[expected])
        assert (tensor.dtype, tensor.shape) == (before[name].dtype, tuple(before[name].shape))
        assert list(tensor.fingerprint_before) == fingerprint(before[name]).tolist()
        assert list(tensor.fingerprint_after) == fingerprint(after[name]).tolist()
    assert delta.numel == sum(tensor.numel() for tensor in before.values())
    assert delta.changed == sum(tensor.changed for tensor in delta.values())


@given(pairs())
@many
def test_apply_and_revert_in_place_are_exact(pair: tuple[Tensors, Tensors]) -> None:
    before, after = pair
    live = {name: tensor.clone() for name, tensor in before.items()}
    delta = diff(before, after)
    apply(live, delta)
    assert all(same_bits(live[name], after[name]) for name in after)
    revert(live, delta)
    assert all(same_bits(live[name], before[name]) for name in before)


@given(pairs(), st.integers(0, 3))
@settings(max_examples=30, deadline=None)
def test_folders_and_files_round_trip(pair: tuple[Tensors, Tensors], shards: int) -> None:
    before, after = pair
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        old = write_checkpoint(root / "old", before, shards if before else 0)
        new = write_checkpoint(root / "new", after, shards if before else 0)
        delta = diff(old, new, metadata={"domain": "mäth\n"})
        delta.save(root / "x.delta.safetensors")
        loaded = Delta.load(root / "x.delta.safetensors", old)
        assert loaded == delta
        assert list(loaded) == list(delta)
        assert loaded.metadata == {"domain": "mäth\n"}
        assert all(loaded[key].fingerprint_after == delta[key].fingerprint_after for key in delta)

        apply(old, loaded, out=root / "applied")
        revert(new, loaded, out=root / "reverted")
        for made, like in (("applied", new), ("reverted", old)):
            files = {file.name: file.read_bytes() for file in (root / made).iterdir()}
            assert files == {file.name: file.read_bytes() for file in like.iterdir()}


@given(pairs())
@settings(max_examples=20, deadline=None)
def test_live_and_stored_weights_give_the_same_delta(pair: tuple[Tensors, Tensors]) -> None:
    before, after = pair
    with tempfile.TemporaryDirectory() as name:
        folder = write_checkpoint(Path(name) / "old", before, 0)
        stored = diff(folder, after)
        assert stored == diff(before, after)
        assert list(stored) == open_weights(folder).names()


def test_values_are_differences_in_float32() -> None:
    before = {
        "half": torch.tensor([1.0, 2.0, 3.0], dtype=torch.bfloat16),
        "double": torch.tensor([1.0], dtype=torch.float64),
        "whole": torch.tensor([2**24 + 1, 5]),
        "byte": torch.tensor([0, 9], dtype=torch.uint8),
        "flag": torch.tensor([True, False]),
    }
    after = {
        "half": torch.tensor([1.0, 2.5, 2.0], dtype=torch.bfloat16),
        "double": torch.tensor([1.0 + 1e-12], dtype=torch.float64),
        "whole": torch.tensor([2**24, 5]),
        "byte": torch.tensor([255, 9], dtype=torch.uint8),
        "flag": torch.tensor([False, False]),
    }
    values = {name: tensor.values for name, tensor in diff(before, after).items()}
    assert all(value.dtype == torch.float32 for value in values.values())
    assert values["half"].tolist() == [0.5, -1.0]
    assert values["double"].tolist() == [torch.tensor((1.0 + 1e-12) - 1.0).item()]
    assert values["whole"].tolist() == [-1.0]
    assert values["byte"].tolist() == [255.0]
    assert values["flag"].tolist() == [-1.0]


def test_zeros_of_either_sign_and_nans_of_any_payload_are_told_apart() -> None:
    bits = torch.tensor([0x0000, -0x8000, 0x7FC0, 0x7FC1], dtype=torch.int16)
    before, after = bits.view(torch.bfloat16), bits[[1, 1, 3, 3]].view(torch.bfloat16)
    delta = diff({"x": before}, {"x": after})
    assert delta["x"].indices.tolist() == [0, 2]
    live = before.clone()
    apply({"x": live}, delta)
    assert same_bits(live, after)


def test_an_inverse_leads_back() -> None:
    before, after = {"x": torch.zeros(4)}, {"x": torch.tensor([0.0, 1, 0, 2])}
    assert diff(before, after).invert() == diff(after, before)
    assert diff(before, after) != diff(after, before)
    assert diff(before, after)["x"] != "x"
