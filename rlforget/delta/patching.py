"""Applying and reverting a delta: every expected bit is checked before the first one is written."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

import torch

from rlforget.delta.delta import Delta
from rlforget.delta.tensor_delta import TensorDelta
from rlforget.errors import LayoutError, OutputError, WrongBaseError
from rlforget.weights import Weights, WeightsLike, open_weights, pair_up
from rlforget.weights.checkpoint import CheckpointWeights
from rlforget.weights.saving import save_like
from rlforget.weights.undo import SavedBits, all_or_nothing
from rlforget_kernels.common.bits import as_bits
from rlforget_kernels.patch import patch_


def apply(weights: WeightsLike, delta: Delta, out: str | PathLike[str] | None = None, *, force: bool = False) -> None:
    """Change weights from before to after, bit for bit, wholly or not at all.

    A live module or mapping is changed in place. If anything goes wrong on the way, an interrupt included, the old
    bits are put back. Coordinates outside the delta are neither read nor changed.

    Args:
        weights: The weights before: a module or `{name: tensor}`, or a checkpoint, which needs `out`.
        delta: What to change. A tied tensor is changed once; copies of it that the target keeps apart, all of them.
        out: Where to write a new checkpoint with the shards and other files of `weights`.
        force: Replace a checkpoint that is at `out`.

    Raises:
        LayoutError: The delta is for other tensors.
        WrongBaseError: The weights do not hold the bits that the delta expects.
        OutputError: `out` is missing, exists or cannot be written.
        NotACheckpointError: A path that holds no readable checkpoint.
    """
    target = open_weights(weights)
    if isinstance(target, CheckpointWeights) and out is None:
        raise _bad_out(target, "out=, a place for the new checkpoint", "none", "Checkpoints are not changed in place.")
    if not isinstance(target, CheckpointWeights) and out is not None:
        raise _bad_out(target, "a checkpoint to write anew", "live weights", "Leave out= away: they change in place.")
    patches = _checked_plan(target, delta)
    if isinstance(target, CheckpointWeights) and out is not None:
        _write_checkpoint(target, patches, Path(out), force=force)
    else:
        _patch_live(target, patches)


def revert(weights: WeightsLike, delta: Delta, out: str | PathLike[str] | None = None, *, force: bool = False) -> None:
    """Change weights from after back to before; see `apply`, which takes the same arguments and raises the same."""
    apply(weights, delta.invert(), out, force=force)


def check_fits(weights: WeightsLike, delta: Delta) -> None:
    """Check that `apply` would find weights that fit the delta, without writing anything.

    Raises:
        LayoutError: The delta is for other tensors.
        WrongBaseError: The weights do not hold the bits that the delta expects.
        NotACheckpointError: A path that holds no readable checkpoint.
    """
    _checked_plan(open_weights(weights), delta)


def _checked_plan(target: Weights, delta: Delta) -> dict[str, TensorDelta]:
    patches = _plan(target, delta)
    for name, patch in patches.items():
        _check_bits(target, name, patch)
    return patches


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
    held = as_bits(tensor).index_select(0, patch.indices.to(tensor.device)).cpu()
    if not torch.equal(held, patch.before_bits):
        raise _wrong_base(target, name, patch, held)


def _wrong_base(target: Weights, name: str, patch: TensorDelta, held: torch.Tensor) -> WrongBaseError:
    wrong = (held != patch.before_bits).nonzero().flatten()
    first = int(wrong[0])
    done = torch.equal(held, patch.after_bits)
    return WrongBaseError(
        f"{target.description}, tensor {name!r}",
        expected=f"the delta's old bits at {patch.changed} coordinates",
        found=f"other bits at {wrong.numel()} of them, first at index {int(patch.indices[first])}: "
        f"{_hex(held[first])} in place of {_hex(patch.before_bits[first])}",
        fix="It holds the new bits already." if done else "Take the weights that the delta was made from.",
    )


def _hex(bits: torch.Tensor) -> str:
    width = bits.element_size()
    return f"0x{int(bits) % (1 << 8 * width):0{2 * width}x}"


def _patch_live(target: Weights, patches: dict[str, TensorDelta]) -> None:
    def write(saved: dict[str, SavedBits]) -> None:
        for name, patch in patches.items():
            saved[name] = SavedBits(patch.before_bits, patch.indices)
            if _patch(target.tensor(name), patch):
                del saved[name]  # nothing was written there
                _check_bits(target, name, patch)

    all_or_nothing(target, write)


@torch.no_grad()
def _patch(tensor: torch.Tensor, patch: TensorDelta) -> int:
    """Write a patch, unless any expected bit is missing. Returns the number of those."""
    device = tensor.device
    mismatches = patch_(tensor, patch.indices.to(device), patch.before_bits.to(device), patch.after_bits.to(device))
    return int(mismatches)


def _write_checkpoint(target: CheckpointWeights, patches: dict[str, TensorDelta], out: Path, *, force: bool) -> None:
    def patched(name: str) -> torch.Tensor | None:
        if name not in patches:
            return None
        tensor = target.tensor(name).clone()
        if _patch(tensor, patches[name]):
            _check_bits(target, name, patches[name])
        return tensor

    save_like(out, target, patched, force=force)


def _bad_out(target: Weights, expected: str, found: str, fix: str) -> OutputError:
    return OutputError(target.description, expected=expected, found=found, fix=fix)
