"""Changing a checkpoint on disk in place: a delta, or all that live weights hold otherwise, as one transaction."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial

from rlforget.delta.composed import ComposedWeights
from rlforget.delta.scan import Comparison, Piece, added
from rlforget.delta.tensor_delta import Fingerprint
from rlforget.errors import OutputError, RlforgetError, WrongBaseError
from rlforget.weights import Weights
from rlforget.weights.ahead import Progress
from rlforget.weights.checkpoint import CheckpointWeights
from rlforget.weights.distributed_checkpoint import DistributedWeights
from rlforget.weights.in_place import check_writable, not_in_place, write_in_place
from rlforget.weights.saving import Check
from rlforget.weights.undo_records import UndoRecord


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
    base = _base_as_it_is(weights)
    touched = {name for name in weights.names() if len(weights.steps(name)) > 1}
    pieces = Comparison(base, weights).pieces(progress, only=touched)
    return write_in_place(base, _changed(_checked(weights.check(), pieces)), note=note)


def check_in_place(weights: ComposedWeights) -> None:
    """Check that `write_composed` would begin; whether the bits fit is not looked at.

    Raises:
        OutputError: It would not.
        BusyError: Another process is writing the checkpoint.
    """
    check_writable(_base_as_it_is(weights))


def write_difference(
    checkpoint: CheckpointWeights,
    after: Weights,
    *,
    held: Mapping[str, Fingerprint] | None = None,
    note: str = "",
    progress: Progress | None = None,
) -> UndoRecord | None:
    """Make a checkpoint what other weights are, live ones for one; see `write_composed`.

    Args:
        checkpoint: The checkpoint.
        after: The weights that it is to become.
        held: {name in `after`: its fingerprint}, of what the checkpoint must hold up to now: those of the weights when
            they were loaded from it.
        note: What this is.
        progress: Told how many coordinates were read.

    Raises:
        WrongBaseError: The checkpoint holds something else by now.
        OutputError: The tensors are not the same, or the checkpoint cannot be written.
        BusyError: Another process is writing it.
    """
    found = Comparison(checkpoint, after)
    slots = Counter(pair.before for pair in found.pairs)
    others = [pair.name for pair in found.whole] + [name for name, count in slots.items() if count > 1]
    if others:
        raise _other_tensors(checkpoint, others)
    lanes = {pair.name: held[pair.after] for pair in found.pairs if pair.after in held} if held is not None else {}
    pieces = _checked(Check(lanes, partial(_changed_meanwhile, checkpoint)), found.pieces(progress), before=True)
    return write_in_place(checkpoint, _changed(pieces), note=note)


def _base_as_it_is(weights: ComposedWeights) -> CheckpointWeights:
    """Return the checkpoint under composed weights, whose tensors keep their places, shapes and dtypes."""
    base = weights.base
    if isinstance(base, DistributedWeights):
        raise not_in_place(base.description, "a folder of torch.distributed.checkpoint, which is only written anew")
    assert isinstance(base, CheckpointWeights)
    slots = weights.slots()
    others = [name for name, slot in slots.items() if name != slot or weights.meta(name) != base.meta(slot)]
    others += [name for name in base.names() if name not in slots]
    if others:
        raise _other_tensors(base, others)
    files = sorted(weights.changed_files())
    if files:
        raise not_in_place(base.description, f"{len(files)} other files, e.g. {files[0]!r}")
    return base


def _changed(pieces: Iterator[Piece]) -> Iterator[Piece]:
    return (piece for piece in pieces if piece.indices.numel())


def _checked(check: Check, pieces: Iterator[Piece], *, before: bool = False) -> Iterator[Piece]:
    """Yield pieces; raise at the end, when nothing is written yet, where a tensor is not what it must be."""
    found: dict[str, Fingerprint] = {}
    for piece in pieces:
        lanes = piece.fingerprint_before if before else piece.fingerprint_after
        found[piece.name] = added(found.get(piece.name, (0, 0)), lanes)
        yield piece
    for name, expected in check.lanes.items():
        if found.get(name, (0, 0)) != expected:
            raise check.fault(name)


def _changed_meanwhile(checkpoint: CheckpointWeights, name: str) -> RlforgetError:
    return WrongBaseError(
        f"{checkpoint.description}, tensor {name!r}",
        expected="the bits that were loaded from it",
        found="others: it was written since",
        fix="Load it again and repeat the change.",
    )


def _other_tensors(base: CheckpointWeights, names: list[str]) -> OutputError:
    what = "tensors of another shape, dtype, name or tie"
    return not_in_place(base.description, f"{len(names)} {what}, e.g. {names[0]!r}")
