"""Applying and reverting a delta: every expected bit is checked before the first one is written."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TypeAlias, Union

import torch

from rlforget.delta.composed import ComposedWeights
from rlforget.delta.delta import Delta
from rlforget.delta.file import DeltaFile
from rlforget.delta.in_place import check_in_place, write_composed
from rlforget.delta.layers import FileLayer, MemoryLayer, wrong_bits
from rlforget.delta.sharded import check_alike
from rlforget.delta.tensor_delta import TensorDelta
from rlforget.errors import LayoutError, OutputError
from rlforget.weights import Weights, WeightsLike, open_weights, pair_up
from rlforget.weights.ahead import Progress
from rlforget.weights.batching import batches, copied
from rlforget.weights.live import LiveWeights
from rlforget.weights.opening import Checkpoint
from rlforget.weights.sharding import together
from rlforget.weights.undo import SavedBits, all_or_nothing
from rlforget_kernels.common.bits import as_bits
from rlforget_kernels.patch import foreach_patch_

DeltaLike: TypeAlias = Union[Delta, DeltaFile, str, "PathLike[str]"]
"""What stands for a delta: one in memory, its file, or the file's path."""

_AT_ONCE = 1 << 24  # entries that are carried to a device and written together


def apply(
    weights: WeightsLike,
    delta: DeltaLike,
    out: str | PathLike[str] | None = None,
    *,
    in_place: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> None:
    """Change weights from before to after, bit for bit, wholly or not at all.

    A live module or mapping is changed in place. If anything goes wrong on the way, an interrupt included, the old
    bits are put back. Coordinates outside the delta are neither read nor changed, and its files are left aside. Where
    they are spread over ranks, so must the delta be (`diff` of them, or `Delta.sharded`): every rank calls this, none
    writes before all have checked, and each puts its old bits back where another fails or is gone.

    A checkpoint is read once, range by range, and written anew at `out`; or it is changed where it lies, as one
    transaction that a crash cannot cut in half and that `rlforget.undo` takes back. Either way memory does not
    grow with the model.

    Args:
        weights: The weights before: a module or `{name: tensor}`, or a checkpoint, which needs `out` or `in_place`.
        delta: What to change: a delta, or its file. A tied tensor is changed once; copies of it that the target keeps
            apart, all of them.
        out: Where to write a new checkpoint with the shards and other files of `weights`.
        in_place: Change the checkpoint itself.
        force: Replace a checkpoint that is at `out`.
        progress: Told how far the work on a checkpoint is, in coordinates.

    Raises:
        LayoutError: The delta is for other tensors, or changes the shape, dtype or name of live ones.
        WrongBaseError: The weights do not hold the bits that the delta expects.
        OutputError: `out` is missing, exists or cannot be written; or the checkpoint cannot be changed in place.
        DeltaFileError: The delta's file is damaged, or cannot lead this way.
        BusyError: Another process is writing the checkpoint.
        NotACheckpointError: A path that holds no readable checkpoint.
    """
    job = _Job(open_weights(weights, shards=True), delta, backward=False)
    job.run(out, in_place=in_place, force=force, progress=progress)


def revert(
    weights: WeightsLike,
    delta: DeltaLike,
    out: str | PathLike[str] | None = None,
    *,
    in_place: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> None:
    """Change weights from after back to before; see `apply`, which takes the same arguments and raises the same."""
    job = _Job(open_weights(weights, shards=True), delta, backward=True)
    job.run(out, in_place=in_place, force=force, progress=progress)


def check_fits(weights: WeightsLike, delta: DeltaLike, *, backward: bool = False, in_place: bool = False) -> None:
    """Check that `apply` (or `revert`) would go through, as far as that can be told without writing anything.

    Args:
        weights: As for `apply`.
        delta: As for `apply`.
        backward: Whether it is to be reverted.
        in_place: Whether a checkpoint is to be changed where it lies.

    Raises:
        LayoutError: The delta is for other tensors.
        WrongBaseError: The weights do not hold the bits that the delta expects.
        NotACheckpointError: A path that holds no readable checkpoint.
        OutputError: The checkpoint cannot be changed in place.
    """
    _Job(open_weights(weights, shards=True), delta, backward=backward).check(in_place=in_place)


@dataclass(frozen=True)
class _Job:
    """A delta to carry to weights, in one direction."""

    target: Weights
    delta: DeltaLike
    backward: bool

    def check(self, *, in_place: bool) -> None:
        """Check that it fits."""
        if isinstance(self.target, Checkpoint):
            composed = self._composed()
            composed.verify()
            if in_place:
                check_in_place(composed)
        else:
            _checked_plan(self._live(), self._in_memory())

    def run(self, out: str | PathLike[str] | None, *, in_place: bool, force: bool, progress: Progress | None) -> None:
        """Carry it."""
        if isinstance(self.target, Checkpoint):
            if (out is None) == (not in_place):
                found = "both" if in_place else "neither"
                raise _bad_out(
                    self.target, "out=, a place for the new checkpoint, or in_place=True", found, "Give one."
                )
            if out is None:
                write_composed(self._composed(), note=self._note(), progress=progress)
            else:
                self._composed().save(Path(out), force=force, progress=progress)
        elif out is not None:
            fix = "Leave out= away: they change in place."
            raise _bad_out(self.target, "a checkpoint to write anew", "live weights", fix)
        else:
            # Last, so that an interrupt after it meets a caller who has been told that it is done.
            _patch_live(self._live(), _checked_plan(self.target, self._in_memory()))

    def _live(self) -> LiveWeights:
        """Return the target, whose tensors are to be written to."""
        if not isinstance(self.target, LiveWeights):
            fix = "Check the stage out, or load the model."
            raise _bad_out(self.target, "a module, a mapping of tensors or a checkpoint", "weights that are read", fix)
        return self.target

    def _composed(self) -> ComposedWeights:
        delta = _opened(self.delta)
        if isinstance(delta, Delta):
            return ComposedWeights(self.target, [MemoryLayer(delta.invert() if self.backward else delta)])
        return ComposedWeights(self.target, [FileLayer(delta, backward=self.backward)])

    def _in_memory(self) -> Delta:
        delta = _opened(self.delta)
        held = delta if isinstance(delta, Delta) else delta.read(self.target)
        return held.invert() if self.backward else held

    def _note(self) -> str:
        file = self.delta.path if isinstance(self.delta, DeltaFile) else self.delta
        what = "a delta" if isinstance(file, Delta) else str(file)
        return f"{'revert' if self.backward else 'apply'} {what}"


def _opened(delta: DeltaLike) -> Delta | DeltaFile:
    return DeltaFile(delta) if isinstance(delta, str | PathLike) else delta


def _checked_plan(target: Weights, delta: Delta) -> dict[str, TensorDelta]:
    _check_only_bits(target, delta)
    check_alike(target, delta)
    patches = _plan(target, delta)

    def check() -> None:
        for name, patch in patches.items():
            _check_bits(target, name, patch)

    together(check, target.sharding)
    return patches


def _check_only_bits(target: Weights, delta: Delta) -> None:
    """Hold that a delta changes nothing but bits: the tensors of live weights keep names, shapes and dtypes."""
    others = [*delta.whole, *delta.renamed]
    if others:
        raise LayoutError(
            f"{target.description}, tensor {others[0]!r}",
            expected="a delta of tensors that keep their names, shapes and dtypes",
            found=f"one that adds, drops, resizes, retypes or renames {len(others)} of them",
            fix="Apply it to the checkpoint with out=, and load the model from there.",
        )


def _plan(target: Weights, delta: Delta) -> dict[str, TensorDelta]:
    """Return the patch of each storage of the target that changes, by its canonical name."""
    patches: dict[str, TensorDelta] = {}
    for _, name, name_in_target in pair_up(delta.layout, target):
        patch = delta[name]
        known = patches.setdefault(name_in_target, patch)
        if not known.same_patch(patch):
            raise LayoutError(
                f"{target.description}, tensor {name_in_target!r}",
                expected=f"{known.name!r} and {name!r} apart, as the delta has them",
                found="one tied tensor, which cannot take two different changes",
                fix="Untie the two first.",
            )
    return {name: patch for name, patch in patches.items() if patch.changed}


def _check_bits(target: Weights, name: str, patch: TensorDelta) -> None:
    tensor = target.tensor(name)
    if any(stride == 0 and size > 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)):
        raise LayoutError(
            f"{target.description}, tensor {name!r}",
            expected="a place in memory for each coordinate",
            found="an expanded tensor, whose coordinates share one",
            fix="Clone it first.",
        )
    held = as_bits(tensor).index_select(0, target.places(name, patch.indices).to(tensor.device)).cpu()
    if not torch.equal(held, patch.before_bits):
        raise wrong_bits(target.description, patch, held)


def _patch_live(target: Weights, patches: dict[str, TensorDelta]) -> None:
    def write(saved: dict[str, SavedBits]) -> None:
        def size(one: tuple[str, TensorDelta]) -> int:
            return one[1].changed + copied(target.tensor(one[0]))

        for run in batches(patches.items(), size, _AT_ONCE, lambda one: target.tensor(one[0]).device):
            places = [target.places(name, patch.indices) for name, patch in run]
            for (name, patch), at in zip(run, places, strict=True):
                saved[name] = SavedBits(patch.before_bits, at)
            if _patch([target.tensor(name) for name, _ in run], places, [patch for _, patch in run]):
                for name, _ in run:
                    del saved[name]  # nothing was written there
                for name, patch in run:
                    _check_bits(target, name, patch)
                raise LayoutError(
                    target.description,
                    expected="weights that nobody else writes",
                    found="bits that were others at a first look than at a second",
                    fix="Let what writes to them end first. Nothing of this run of tensors was written.",
                )

    all_or_nothing(target, write, lambda told, saved: None)


@torch.no_grad()
def _patch(tensors: list[torch.Tensor], places: list[torch.Tensor], patches: list[TensorDelta]) -> int:
    """Write patches of tensors on one device, unless any expected bit is missing. Returns the number of those."""
    device = tensors[0].device
    lists = (places, [patch.before_bits for patch in patches], [patch.after_bits for patch in patches])
    mismatches = foreach_patch_(tensors, *([one.to(device) for one in some] for some in lists))
    return int(mismatches.sum())


def _bad_out(target: Weights, expected: str, found: str, fix: str) -> OutputError:
    return OutputError(target.description, expected=expected, found=found, fix=fix)
