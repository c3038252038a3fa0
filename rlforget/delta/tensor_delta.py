"""What changed in one tensor that kept its shape and dtype: the bits before and after, where they differ."""

from __future__ import annotations

from dataclasses import InitVar, dataclass, replace
from math import prod

import torch

from rlforget.errors import CoordinateError
from rlforget.weights import TensorMeta
from rlforget_kernels.common.bits import bits_dtype, index_dtype

Fingerprint = tuple[int, int]
"""Two signed 64-bit lanes, see `rlforget_kernels.fingerprint`."""


@dataclass(frozen=True, eq=False)
class TensorDelta:
    """What changed in one tensor. Bits are kept, never differences: `base + (tuned - base)` is not `tuned` in bfloat16.

    Args:
        name: The tensor's canonical name; where it was renamed, that before.
        dtype: Its stored dtype.
        shape: Its shape.
        indices: Row-major flat indices of the changed coordinates, ascending. 1-D, int32 (int64 from 2**31
            coordinates on), on the CPU.
        before_bits: Their bits before, as integers of the dtype's width. 1-D, as long as `indices`.
        after_bits: Their bits after, likewise.
        fingerprint_before: Fingerprint of the whole tensor before.
        fingerprint_after: Fingerprint of the whole tensor after.
        ordered: Whether the indices are known to ascend and to lie in the tensor, as those that an operator found; else
            they are read once to see.

    Raises:
        CoordinateError: Lengths or dtypes disagree, indices do not ascend, or lie outside the tensor.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    indices: torch.Tensor
    before_bits: torch.Tensor
    after_bits: torch.Tensor
    fingerprint_before: Fingerprint
    fingerprint_after: Fingerprint
    ordered: InitVar[bool] = False

    def __post_init__(self, ordered: bool) -> None:
        count = self.indices.shape
        bits = bits_dtype(self.dtype)
        whole = (
            len(count) == 1
            and self.indices.dtype == index_dtype(self.numel)
            and (self.before_bits.shape, self.before_bits.dtype) == (count, bits)
            and (self.after_bits.shape, self.after_bits.dtype) == (count, bits)
        )
        if not whole:
            raise self._fault(f"1-D {index_dtype(self.numel)} indices and as many {bits}", "other lengths or dtypes")
        if ordered:
            return
        if not bool((self.indices[1:] > self.indices[:-1]).all()):
            raise self._fault("indices that ascend, each once", "indices out of order, or repeated")
        if self.changed and not (int(self.indices[0]) >= 0 and int(self.indices[-1]) < self.numel):
            raise self._fault(f"indices from 0 to {self.numel - 1}", f"{self.indices[0]} to {self.indices[-1]}")

    @property
    def numel(self) -> int:
        """The number of coordinates of the tensor."""
        return prod(self.shape)

    @property
    def changed(self) -> int:
        """The number of coordinates whose bits differ."""
        return self.indices.numel()

    @property
    def before(self) -> torch.Tensor:
        """The old values at `indices`, in the stored dtype. 1-D."""
        return self.before_bits.view(self.dtype)

    @property
    def after(self) -> torch.Tensor:
        """The new values at `indices`, in the stored dtype. 1-D."""
        return self.after_bits.view(self.dtype)

    @property
    def values(self) -> torch.Tensor:
        """`after - before` at `indices`. 1-D float32; float64 and integer tensors are subtracted in float64."""
        wide = torch.float32 if self.dtype.is_floating_point and self.dtype != torch.float64 else torch.float64
        return (self.after.to(wide) - self.before.to(wide)).to(torch.float32)

    def invert(self) -> TensorDelta:
        """Return the delta that leads back."""
        return replace(
            self,
            before_bits=self.after_bits,
            after_bits=self.before_bits,
            fingerprint_before=self.fingerprint_after,
            fingerprint_after=self.fingerprint_before,
            ordered=True,
        )

    def positions(self, indices: torch.Tensor) -> torch.Tensor:
        """Return where flat indices stand among those that changed.

        Args:
            indices: 1-D integers, on any device.

        Returns:
            int64 positions p, as many, with `self.indices[p] == indices`.

        Raises:
            CoordinateError: One of them did not change.
        """
        changed = self.indices.to(device=indices.device, dtype=torch.int64)
        found = torch.searchsorted(changed, indices.to(torch.int64))
        known = torch.zeros_like(indices, dtype=torch.bool)
        inside = found < changed.numel()
        known[inside] = changed[found[inside]] == indices[inside]
        if not bool(known.all()):
            raise CoordinateError(
                f"coordinate {int(indices[~known][0])} of {self.name!r}",
                expected="a coordinate that the delta changed",
                found="one that it did not change",
                fix="Choose coordinates from a conflict of this very delta.",
            )
        return found

    def __eq__(self, other: object) -> bool:
        """Whether both say the same about a tensor of the same name, bit for bit."""
        if not isinstance(other, TensorDelta):
            return NotImplemented
        return (self.name, self.dtype, self.shape) == (other.name, other.dtype, other.shape) and self.same_patch(other)

    __hash__ = None  # type: ignore[assignment]

    def same_patch(self, other: TensorDelta) -> bool:
        """Whether both hold the same bits at the same indices, whatever the tensors are named."""
        return (
            torch.equal(self.indices, other.indices)
            and torch.equal(self.before_bits, other.before_bits)
            and torch.equal(self.after_bits, other.after_bits)
        )

    def __repr__(self) -> str:
        return f"TensorDelta({self.name!r}, {TensorMeta(self.dtype, self.shape)}, {self.changed} changed)"

    def _fault(self, expected: str, found: str) -> CoordinateError:
        return CoordinateError(
            f"delta of {self.name!r}", expected=expected, found=found, fix="Make it with rlforget.diff."
        )
