"""A delta, whatever it lies in, tensor by tensor and range by range, for exports that never hold all of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from rlforget.delta.composed import ComposedWeights
from rlforget.delta.delta import Delta
from rlforget.delta.file import DeltaFile
from rlforget.delta.file.memory import End, end_of, pieces_of, unfit
from rlforget.delta.layers import FileLayer, Layer, MemoryLayer
from rlforget.delta.patching import DeltaLike
from rlforget.delta.scan import Piece
from rlforget.delta.sharded import check_whole
from rlforget.errors import ExportError, NonFiniteError, WrongBaseError
from rlforget.weights import TensorMeta, Weights, WeightsLike, open_weights
from rlforget.weights.digest import lanes_of
from rlforget_kernels.fingerprint import fingerprint_after_patch


class Changes:
    """What a delta changes in tensors that keep their shape and dtype, read range by range.

    Args:
        delta: A delta, its file, or the file's path.
        base: The weights at either end. A file needs them, unless it is self-contained.

    Attributes:
        delta: The delta or its file, opened.
        metas: {name before: dtype and shape} of the tensors that keep them, in order, unchanged ones included.
        changed: {name: how many of its coordinates changed}, of those where any did.
        base: The base, opened; None: there is none.
        forward: Whether the base stands before the change; False: after it; None: nothing tells.

    Raises:
        DeltaFileError: The file is damaged, or needs a base.
        WrongBaseError: `base` is at neither end.
        LayoutError: `base` has other tensors.
    """

    def __init__(self, delta: DeltaLike, base: WeightsLike | None = None) -> None:
        if isinstance(delta, Delta):
            check_whole(delta)
        self.delta: Delta | DeltaFile = DeltaFile(delta) if isinstance(delta, str | PathLike) else delta
        tensors = self.delta if isinstance(self.delta, Delta) else self.delta.tensors
        self.metas = {name: TensorMeta(one.dtype, one.shape) for name, one in tensors.items()}
        self.changed = {name: one.changed for name, one in tensors.items() if one.changed}
        self._ends: dict[str, End] = {}
        self.base = None if base is None else open_weights(base)
        if isinstance(self.delta, DeltaFile) and self.base is None and self.changed and not self.delta.self_contained:
            raise self.delta.needs_base("a self-contained file, or base= (--base)")
        self.forward = self._forward()

    @property
    def aliases(self) -> Mapping[str, str]:
        """Further names of tied tensors, with the names they stand for."""
        return self.delta.aliases

    @property
    def base_path(self) -> Path | None:
        """Where the base lies, if it is the checkpoint before the change."""
        path = getattr(self.base, "path", None)
        return path if isinstance(path, Path) and self.forward else None

    def whole(self) -> list[str]:
        """Return the names of the tensors that were added, dropped, resized or retyped."""
        return list(self.delta.whole)

    def require_only_bits(self, what: str) -> None:
        """Hold that every tensor keeps its shape and dtype.

        Args:
            what: The format that has no room for others.

        Raises:
            ExportError: One does not.
        """
        if self.whole():
            raise ExportError(
                f"tensor {self.whole()[0]!r}",
                expected=f"for {what}, a change of tensors that keep their shape and dtype",
                found=f"{len(self.whole())} that were added, dropped, resized or retyped",
                fix="Export the format `safetensors`, which holds them; or, in Python, a part: Delta.restrict(names).",
            )

    def pieces(self, name: str) -> Iterator[Piece]:
        """Yield what changed in a tensor, range by range, in order; ranges without changes are left out.

        Raises:
            WrongBaseError: The base is at neither end.
            DeltaFileError: A frame is damaged, or what it holds does not fit the tensor's fingerprint.
        """
        if isinstance(self.delta, Delta):
            yield from (piece for piece in pieces_of(self.delta[name]) if piece.indices.numel())
            return
        entry = self.delta.tensors[name]
        if not entry.changed:
            return
        end = None if self.delta.self_contained else self._end(self.delta, name)
        lanes, count = torch.tensor(entry.fingerprint_before), 0
        for start, stop in self.delta.changed_ranges(name):
            held = None if self.base is None or end is None else self.base.bits(end.name, start, stop)
            patch = self.delta.patch(name, start, stop)
            indices, before, after = patch.changes(held, backward=end is not None and end.backward)
            lanes = fingerprint_after_patch(lanes, indices, before, after)
            count += indices.numel()
            yield Piece(name, entry.dtype, start, stop, indices, before, after)
        if count != entry.changed or tuple(lanes.tolist()) != entry.fingerprint_after:
            raise unfit(self.delta, entry)

    def after(self) -> Weights:
        """Return the weights after the change, which are composed as they are read.

        Raises:
            ExportError: There is no base that they could be read from.
        """
        if self.base is None:
            raise ExportError(
                "the weights after",
                expected="base= (--base), the weights at either end of the delta",
                found="none, and a delta holds but what changed",
                fix="Give the checkpoint that the delta was made from.",
            )
        return ComposedWeights(self.base, [self.layer()]) if self.forward else self.base

    def _end(self, file: DeltaFile, name: str) -> End | None:
        """Tell, once, at which end a tensor of the base is."""
        if self.base is not None and name not in self._ends:
            self._ends[name] = end_of(file, file.tensors[name], self.base)
        return self._ends.get(name)

    def layer(self) -> Layer:
        """Return the change as a layer over the weights before."""
        return MemoryLayer(self.delta) if isinstance(self.delta, Delta) else FileLayer(self.delta)

    def _forward(self) -> bool | None:
        """Tell at which end the base stands, by the first tensor that changed."""
        if self.base is None or not self.changed:
            return None
        name = next(iter(self.changed))
        if isinstance(self.delta, DeltaFile):
            end = self._end(self.delta, name)
            return end is not None and not end.backward
        patch, here = self.delta[name], name if name in self.base else self.delta.name_after(name)
        lanes = lanes_of(self.base, here) if self.base.meta(here) == self.metas[name] else None
        if lanes not in (patch.fingerprint_before, patch.fingerprint_after):
            raise WrongBaseError(
                f"{self.base.description}, tensor {name!r}",
                expected="the bits at either end of the delta",
                found="others, told by their fingerprint",
                fix="Give the weights that the delta was made from, or those it leads to.",
            )
        return lanes == patch.fingerprint_before


def difference(piece: Piece, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return after − before at the coordinates of a piece.

    Args:
        piece: Of a floating-point tensor.
        dtype: float32 or float64, in which it is taken; float64 tensors are always subtracted in float64.

    Returns:
        1-D `dtype`, as many as `piece.indices`.

    Raises:
        NonFiniteError: One of them is NaN or infinite, or goes from or to such a value.
    """
    wide = torch.float64 if piece.dtype == torch.float64 else dtype
    found = piece.after_bits.view(piece.dtype).to(wide) - piece.before_bits.view(piece.dtype).to(wide)
    check_finite(found, piece)
    return found.to(dtype)


def check_finite(values: Tensor, piece: Piece) -> None:
    """Hold that the values of a piece's coordinates are finite.

    Raises:
        NonFiniteError: One is not.
    """
    wrong = values.isfinite().logical_not().nonzero().flatten()
    if wrong.numel():
        raise NonFiniteError(
            f"tensor {piece.name!r}, index {int(piece.indices[wrong[0]])}",
            expected=f"a difference that is a finite number in {str(values.dtype).removeprefix('torch.')}",
            found=f"{float(values[wrong[0]])}, at {wrong.numel()} coordinates of the range",
            fix="Export the format `safetensors`, which holds every value; or repair them, or take a wider dtype.",
        )
