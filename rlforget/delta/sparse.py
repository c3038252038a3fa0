"""A delta: the bits before and after, at every coordinate where they differ."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from os import PathLike
from typing import TYPE_CHECKING

import torch

from rlforget.errors import CoordinateError, UnknownNameError
from rlforget.weights import Layout, TensorMeta
from rlforget_kernels.common.bits import bits_dtype, index_dtype

if TYPE_CHECKING:
    from rlforget.delta.stats import DeltaStats

Fingerprint = tuple[int, int]
"""Two signed 64-bit lanes, see `rlforget_kernels.fingerprint`."""


@dataclass(frozen=True, eq=False)
class TensorDelta:
    """What changed in one tensor. Bits are kept, never differences: `base + (tuned - base)` is not `tuned` in bfloat16.

    Args:
        name: The tensor's canonical name.
        dtype: Its stored dtype.
        shape: Its shape.
        indices: Row-major flat indices of the changed coordinates, ascending. 1-D, int32 (int64 from 2**31
            coordinates on), on the CPU.
        before_bits: Their bits before, as integers of the dtype's width. 1-D, as long as `indices`.
        after_bits: Their bits after, likewise.
        fingerprint_before: Fingerprint of the whole tensor before.
        fingerprint_after: Fingerprint of the whole tensor after.

    Raises:
        CoordinateError: Lengths or dtypes disagree, or the first or last index lies outside the tensor.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    indices: torch.Tensor
    before_bits: torch.Tensor
    after_bits: torch.Tensor
    fingerprint_before: Fingerprint
    fingerprint_after: Fingerprint

    def __post_init__(self) -> None:
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
        if self.changed and not (int(self.indices[0]) >= 0 and int(self.indices[-1]) < self.numel):
            raise self._fault(f"indices from 0 to {self.numel - 1}", f"{self.indices[0]} to {self.indices[-1]}")

    @property
    def numel(self) -> int:
        """The number of coordinates of the tensor."""
        return TensorMeta(self.dtype, self.shape).numel

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

    def inverse(self) -> TensorDelta:
        """Return the delta that leads back."""
        return replace(
            self,
            before_bits=self.after_bits,
            after_bits=self.before_bits,
            fingerprint_before=self.fingerprint_after,
            fingerprint_after=self.fingerprint_before,
        )

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


class Delta(Mapping[str, TensorDelta]):
    """What changed between two sets of weights: a mapping over all tensor names, in order; unchanged ones are empty.

    Looking a tensor up by a tied name works too.

    Args:
        tensors: One entry a tensor.
        aliases: Further names of tied tensors, with the names they stand for.
        metadata: Strings that travel with the delta, e.g. the domain it was trained on.
    """

    def __init__(
        self,
        tensors: Iterable[TensorDelta],
        *,
        aliases: Mapping[str, str] | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self._tensors = {tensor.name: tensor for tensor in tensors}
        self.aliases: dict[str, str] = dict(aliases or {})
        self.metadata: dict[str, str] = dict(metadata or {})

    def __getitem__(self, name: str) -> TensorDelta:
        """Return what changed in a tensor.

        Raises:
            UnknownNameError: There is no such tensor.
        """
        canonical = self.aliases.get(name, name)
        if canonical not in self._tensors:
            raise UnknownNameError(
                f"tensor {name!r}",
                expected=f"one of the delta's {len(self)} tensors",
                found="no tensor of that name",
                fix="List the names by iterating over the delta.",
            )
        return self._tensors[canonical]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __repr__(self) -> str:
        return f"Delta({len(self)} tensors, {self.changed} of {self.numel} coordinates changed)"

    @property
    def changed(self) -> int:
        """The number of coordinates whose bits differ."""
        return sum(tensor.changed for tensor in self.values())

    @property
    def numel(self) -> int:
        """The number of coordinates of all tensors; tied ones count once."""
        return sum(tensor.numel for tensor in self.values())

    @property
    def sparsity(self) -> float:
        """The share of coordinates whose bits are the same; 1 where there are none."""
        return 1.0 - self.changed / self.numel if self.numel else 1.0

    @property
    def layout(self) -> Layout:
        """Names, dtypes and shapes of the tensors that the delta fits."""
        metas = {name: TensorMeta(tensor.dtype, tensor.shape) for name, tensor in self.items()}
        return Layout("the delta", metas, self.aliases)

    def inverse(self) -> Delta:
        """Return the delta that leads back."""
        tensors = (tensor.inverse() for tensor in self.values())
        return Delta(tensors, aliases=self.aliases, metadata=self.metadata)

    def stats(self) -> DeltaStats:
        """Measure the delta: sparsity, norms and steps, per tensor and in total."""
        from rlforget.delta.stats import measure

        return measure(self)

    def save(self, path: str | PathLike[str], *, force: bool = False) -> None:
        """Write the delta to a safetensors file, whole or not at all.

        Args:
            path: The file, by custom `NAME.delta.safetensors`.
            force: Replace a file that is there.

        Raises:
            OutputError: The file exists, or cannot be written.
        """
        from rlforget.delta.file import save

        save(self, path, force=force)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Delta:
        """Read a delta from its file, memory-mapped, and check all of it.

        Raises:
            DeltaFileError: The file is missing, truncated, forged, or of another format.
        """
        from rlforget.delta.file import load

        return load(path)
