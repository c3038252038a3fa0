"""What a delta file says of a range of one tensor: steps that lead both ways, or the bits afterwards."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlforget.delta.file.frames import Bits, Decoded
from rlforget.errors import DeltaFileError
from rlforget_kernels.common.bits import index_dtype
from rlforget_kernels.step_codes import step_, step_at_, steps_between

Positions = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Part:
    """A frame's share of a range.

    Attributes:
        start: Where the share begins in the range.
        size: How many coordinates it has.
        positions: uint32 [k], those that changed, in the range; None: each has a value here.
        codes: Zigzag codes of the steps; None where there are bits.
        after: Bits afterwards; None where there are steps.
        before: Bits before, of the coordinates that changed or of all; None if they do not travel.
    """

    start: int
    size: int
    positions: npt.NDArray[np.uint32] | None
    codes: Bits | None
    after: Bits | None
    before: Bits | None


def part_of(frame: Decoded, first: int, start: int, stop: int) -> Part:
    """Return what of a frame, whose run begins at place `first`, lies in the places [start, stop) of the line."""
    low, high = max(start - first, 0), min(stop - first, frame.coordinates)
    if frame.positions is None:
        inside, positions = slice(low, high), None
    else:
        inside = slice(*np.searchsorted(frame.positions, np.array([low, high], np.uint32)))
        positions = frame.positions[inside]
        if start != first:
            positions = (positions.astype(np.int64) + (first - start)).astype(np.uint32)
    values = (None if found is None else found[inside] for found in (frame.codes, frame.after, frame.before))
    return Part(first + low - start, high - low, positions, *values)


class Patch:
    """The changes within coordinates [start, stop) of a tensor.

    Attributes:
        name: The tensor.
        start: Row-major flat index of the first coordinate.
        stop: Index after the last one.
    """

    def __init__(
        self, file: str, name: str, start: int, stop: int, dtype: torch.dtype, numel: int, parts: list[Part]
    ) -> None:
        self.name, self.start, self.stop = name, start, stop
        self._file, self._dtype, self._index, self._parts = file, dtype, index_dtype(numel), parts

    @property
    def two_way(self) -> bool:
        """Whether it leads back as well as forward: not where bits afterwards are all that the file holds."""
        return all(part.after is None or part.before is not None for part in self._parts)

    def forward_(self, bits: Tensor) -> None:
        """Change the bits of this very range from before to after, in place.

        Args:
            bits: 1-D integers of the dtype's width, `stop - start`, contiguous, on the CPU.
        """
        self._walk(bits, backward=False)

    def backward_(self, bits: Tensor) -> None:
        """Change the bits of this very range from after to before, in place; see `forward_`.

        Raises:
            DeltaFileError: The file holds but the bits afterwards of a part of the range.
        """
        self._require_two_way()
        self._walk(bits, backward=True)

    def changes(self, bits: Tensor | None = None, *, backward: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Return what changed, given the bits of this very range at one end. No others are looked at.

        Args:
            bits: The bits before, or with `backward` those after; as `forward_` takes them, but left as they are. None:
                the bits before that travel in the file.
            backward: Which of the two they are.

        Returns:
            Flat indices in the whole tensor, ascending (int32; int64 from 2**31 coordinates on), and the bits before
            and after at them.

        Raises:
            DeltaFileError: As for `backward_`, or the bits before are needed and do not travel.
        """
        if backward:
            self._require_two_way()
        held = None if bits is None else self._unsigned(bits)
        found = [self._changes(part, held, backward) for part in self._parts]
        ends = self._joined([here for _, here, _ in found]), self._joined([there for _, _, there in found])
        before, after = ends[::-1] if backward else ends
        return self._indices([at for at, _, _ in found]), before, after

    @property
    def indices(self) -> Tensor:
        """Flat indices in the whole tensor of what changed, ascending: int32; int64 from 2**31 coordinates on.

        Raises:
            DeltaFileError: The file holds but the bits afterwards of a part of the range.
        """
        self._require_two_way()
        return self._indices([_changed(part) for part in self._parts])

    @property
    def steps(self) -> Tensor:
        """The step of each coordinate in `indices`: signed integers of the dtype's width; raises as `indices` does."""
        self._require_two_way()
        return self._joined([_steps(self._codes(part)) for part in self._parts])

    @property
    def before_bits(self) -> Tensor:
        """The bits before at `indices`, of a file that is self-contained: integers of the dtype's width.

        Raises:
            DeltaFileError: The bits from before do not travel.
        """
        return self.changes()[1]

    def _walk(self, bits: Tensor, *, backward: bool) -> None:
        held = self._unsigned(bits)
        floating = self._dtype.is_floating_point
        for part in self._parts:
            some = held[part.start : part.start + part.size]
            if part.codes is None:
                some[:] = part.before if backward else part.after
            elif part.positions is None:
                step_(some, part.codes, floating=floating, backward=backward)
            else:
                step_at_(held, part.positions, part.codes, floating=floating, backward=backward)

    def _changes(self, part: Part, held: Bits | None, backward: bool) -> tuple[Positions, Bits, Bits]:
        """Return where in the range a part changes anything, and the bits there at the one end and at the other."""
        known = part.before if held is None else held[part.start : part.start + part.size]
        if known is None:
            raise self._one_way("the bits from before")
        other = part.before if backward else part.after
        near: Positions | slice
        if part.positions is None:
            near = np.flatnonzero(known != other if part.codes is None else part.codes != 0)
            at, here = near + part.start, known[near]
        else:
            near, at = slice(None), part.positions.astype(np.int64)
            here = known if held is None else held[at]
        if part.codes is None:
            assert other is not None  # as the one or the other end is all that such a part has
            return at, here, other[near]
        codes = part.codes[near]
        there = here.copy()
        step_(there, codes, floating=self._dtype.is_floating_point, backward=backward)
        return at, here, there

    def _unsigned(self, bits: Tensor) -> Bits:
        if bits.numel() != self.stop - self.start:
            raise ValueError(f"expected the bits of {self.stop - self.start} coordinates; found {bits.numel()}")
        found: Bits = bits.numpy().view(f"u{bits.element_size()}")
        return found

    def _codes(self, part: Part) -> Bits:
        if part.codes is None:
            assert part.before is not None
            assert part.after is not None
            codes = steps_between(part.before, part.after, floating=self._dtype.is_floating_point)
        else:
            codes = part.codes
        return codes if part.positions is not None else codes[codes != 0]

    def _indices(self, found: list[Positions]) -> Tensor:
        at = found[0] if len(found) == 1 else np.concatenate([np.zeros(0, np.int64), *found])
        return torch.from_numpy(at + self.start).to(self._index)

    def _joined(self, found: list[Bits]) -> Tensor:
        width = self._dtype.itemsize
        bits = found[0] if len(found) == 1 else np.concatenate([np.zeros(0, f"u{width}"), *found])
        return torch.from_numpy(bits.view(f"i{width}"))

    def _require_two_way(self) -> None:
        if not self.two_way:
            raise self._one_way("steps, which lead both ways")

    def _one_way(self, expected: str) -> DeltaFileError:
        return DeltaFileError(
            f"{self._file}, tensor {self.name!r}",
            expected=expected,
            found="bits afterwards alone, which took less room" if not self.two_way else "steps",
            fix="Start from the weights before, or save the delta with self_contained=True.",
        )


def _changed(part: Part) -> Positions:
    """Where in the range a part changes anything."""
    if part.positions is not None:
        return part.positions.astype(np.int64)
    differ = part.codes != 0 if part.codes is not None else part.before != part.after
    return np.flatnonzero(differ) + part.start


def _steps(codes: Bits) -> Bits:
    one = codes.dtype.type(1)
    steps: Bits = (codes >> one) ^ (codes.dtype.type(0) - (codes & one))
    return steps
