"""Whatever becomes of a checkpoint, its delta leads there and back: on bits, by folders, files and live weights."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlforget.delta import Delta, apply, diff, revert
from rlforget.errors import DeltaFileError, RlforgetError
from rlforget.weights import open_weights
from rlforget.weights.digest import weights_digest
from tests.delta.random_changes import Change, Side, changes
from tests.delta.random_weights import same_bits


def assert_holds(folder: Path, side: Side) -> None:
    found = open_weights(folder)
    expected = side.tensors | {name: side.tensors[kept] for name, kept in side.ties.items()}
    assert set(found.all_names()) == set(expected)
    assert all(same_bits(found.tensor(name), tensor) for name, tensor in expected.items())
    assert {file.name: file.read_bytes() for file in folder.iterdir() if ".safetensors" not in file.name} == side.files


@given(changes(), st.booleans())
def test_any_change_leads_there_and_back(change: Change, self_contained: bool) -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        before, after = change.before.write(root / "before"), change.after.write(root / "after")
        delta, path = diff(before, after, rename=change.renamed), root / "change.delta.safetensors"
        delta.save(path, self_contained=self_contained)
        loaded = Delta.load(path, base=None if self_contained else before)
        assert loaded == delta
        assert loaded.invert().invert() == delta
        if change.before.ties == change.after.ties:
            assert loaded.fingerprint_before == weights_digest(open_weights(before))
            assert loaded.fingerprint_after == weights_digest(open_weights(after))
        apply(before, path, out=root / "applied")
        assert_holds(root / "applied", change.after)
        if self_contained or not change.loses:
            revert(after, path, out=root / "reverted")
            assert_holds(root / "reverted", change.before)
        else:
            with pytest.raises(RlforgetError):
                revert(after, path, out=root / "reverted")
            assert not (root / "reverted").exists()


@given(changes())
def test_any_change_leads_there_and_back_in_memory(change: Change) -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        before, after = change.before.write(root / "before"), change.after.write(root / "after")
        delta = diff(before, after, rename=change.renamed)
        apply(before, delta, out=root / "applied")
        assert_holds(root / "applied", change.after)
        revert(after, delta, out=root / "reverted")
        assert_holds(root / "reverted", change.before)


@given(changes())
def test_steps_read_at_the_other_end_are_the_same_delta(change: Change) -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        before, after = change.before.write(root / "before"), change.after.write(root / "after")
        delta, path = diff(before, after, rename=change.renamed), root / "change.delta.safetensors"
        delta.save(path)
        if not change.loses:
            assert Delta.load(path, base=after) == delta
        if delta.changed:
            with pytest.raises(DeltaFileError):
                Delta.load(path)


@given(changes())
def test_two_changes_are_one(change: Change) -> None:
    """There and back is no change at all, and a change after it is that change."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        before, after = change.before.write(root / "before"), change.after.write(root / "after")
        delta = diff(before, after, rename=change.renamed)
        assert delta.then(delta.invert()).empty
        assert delta.then(delta.invert()).then(delta) == delta
