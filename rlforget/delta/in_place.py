"""Changing a checkpoint on disk in place: a delta, or all that live weights hold otherwise, as one transaction."""

from __future__ import annotations

from collections.abc import Iterator

from rlforget.delta.composed import ComposedWeights
from rlforget.delta.scan import Comparison, Piece, added
from rlforget.delta.tensor_delta import Fingerprint
from rlforget.weights import Weights
from rlforget.weights.ahead import Progress
from rlforget.weights.checkpoint import CheckpointWeights
from rlforget.weights.in_place import UndoRecord, not_in_place, write_in_place


def write_composed(weights: ComposedWeights, *, note: str = "", progress: Progress | None = None) -> UndoRecord | None:
    """Make the base of composed weights, a checkpoint, what they are.

    Args:
        weights: A checkpoint and the deltas to apply to it.
        note: What this is, for `rlforget undo --list`.
        progress: Told how many coordinates were read.

    Returns:
        The record by which it can be undone; None where there was nothing to change.

    Raises:
        WrongBaseError: The checkpoint is not the one that the deltas were made from.
        OutputError: A delta changes more than bits of tensors as they are; or the checkpoint cannot be written.
        BusyError: Another process is writing it.
    """
    base = weights.base
    assert isinstance(base, CheckpointWeights)
    found = Comparison(base, weights)
    files = sorted(weights.changed_files())
    _check_same_tensors(base, found, files)
    touched = {name for name in weights.names() if len(weights.steps(name)) > 1}
    return write_in_place(base, _checked(weights, found.pieces(progress, only=touched)), note=note)


def write_difference(
    checkpoint: CheckpointWeights, after: Weights, *, note: str = "", progress: Progress | None = None
) -> UndoRecord | None:
    """Make a checkpoint what other weights are, live ones for one; see `write_composed`."""
    found = Comparison(checkpoint, after)
    _check_same_tensors(checkpoint, found, [])
    return write_in_place(checkpoint, _changed(found.pieces(progress)), note=note)


def _changed(pieces: Iterator[Piece]) -> Iterator[Piece]:
    return (piece for piece in pieces if piece.indices.numel())


def _checked(weights: ComposedWeights, pieces: Iterator[Piece]) -> Iterator[Piece]:
    """Yield the changes; raise at the end, when nothing is written yet, where the result is not what it must be."""
    check = weights.check()
    found: dict[str, Fingerprint] = {}
    for piece in pieces:
        found[piece.name] = added(found.get(piece.name, (0, 0)), piece.fingerprint_after)
        if piece.indices.numel():
            yield piece
    for name, lanes in check.lanes.items():
        if found.get(name, (0, 0)) != lanes:
            raise check.fault(name)


def _check_same_tensors(base: CheckpointWeights, found: Comparison, files: list[str]) -> None:
    others = [pair.name for pair in found.whole]
    if others:
        raise not_in_place(
            base.description, f"{len(others)} tensors of another shape, dtype or name, e.g. {others[0]!r}"
        )
    if files:
        raise not_in_place(base.description, f"{len(files)} other files, e.g. {files[0]!r}")
