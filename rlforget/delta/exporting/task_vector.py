"""A delta as a task vector: after − before of every floating-point tensor, as a folder of safetensors.

Task arithmetic (Ilharco et al., arXiv 2212.04089) adds such vectors to weights. A difference is not what a delta keeps:
before + (after − before), rounded to the dtype of the weights, is not always after. How often it is not, the export
counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlforget.delta.exporting.changes import Changes, check_finite, difference
from rlforget.delta.exporting.shards import LARGEST_SHARD, planned, write_folder
from rlforget.delta.patching import DeltaLike
from rlforget.delta.scan import PIECE, Piece
from rlforget.errors import ExportError
from rlforget.weights import TensorMeta, WeightsLike
from rlforget.weights.ahead import Progress
from rlforget.weights.atomic import check_new_folder

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
"""What a task vector or an adapter may be stored in, by name."""


@dataclass
class TaskVector:
    """What a task vector holds, and what of the change is not in it.

    Attributes:
        dtype: What its values are stored in.
        tensors: How many it has.
        numel: How many coordinates.
        changed: How many of them changed.
        norm: ‖after − before‖ over all of them.
        inexact: Changed coordinates where before + the stored difference, added in float32 (float64 of float64
            tensors) and rounded to the dtype of the weights, is not bit for bit what they were after.
        left_out: Names of changed tensors that are not of floating point, and so not in it.
        files: The safetensors files.
    """

    dtype: str
    tensors: int = 0
    numel: int = 0
    changed: int = 0
    norm: float = 0.0
    inexact: int = 0
    left_out: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain values."""
        return asdict(self)

    def table(self) -> str:
        """Return it as text for people."""
        share = self.inexact / self.changed if self.changed else 0.0
        lines = [
            f"{self.tensors:,} tensors, {self.numel:,} coordinates in {self.dtype}, {self.changed:,} of them not 0",
            f"norm {self.norm:.6g}",
            f"before + difference misses the bits after at {self.inexact:,} of the changed coordinates ({share:.3%})",
        ]
        return "\n".join(lines + [f"left out, no floating point: {name}" for name in self.left_out])


def export_task_vector(
    delta: DeltaLike,
    path: str | PathLike[str],
    *,
    base: WeightsLike | None = None,
    dtype: torch.dtype = torch.float32,
    dry_run: bool = False,
    force: bool = False,
    shard_bytes: int = LARGEST_SHARD,
    progress: Progress | None = None,
) -> TaskVector:
    """Write after − before of every floating-point tensor, 0 where nothing changed, range by range.

    Args:
        delta: A delta, its file, or the file's path.
        path: The folder to create: `model.safetensors`, or shards and their index, and, where the base is a checkpoint
            folder, its config and tokenizer, so that tools that read models read it as one.
        base: The weights at either end; needed for a file that is not self-contained.
        dtype: float32, bfloat16, float16 or float64.
        dry_run: Measure, and write nothing.
        force: Replace a checkpoint folder that is at `path`.
        shard_bytes: Bytes of tensors a file.
        progress: Told how many changed coordinates are done, and of how many.

    Returns:
        What it holds. Tensors go by their names before.

    Raises:
        ExportError: A tensor was added, dropped, resized or retyped; or nothing is left to write.
        NonFiniteError: A difference is no finite number in `dtype`.
        DeltaFileError, WrongBaseError, LayoutError: As for `Delta.load`.
        OutputError: `path` exists and may not be replaced, or cannot be written.
    """
    path, changes = Path(path), Changes(delta, base)
    changes.require_only_bits("a task vector")
    floating = {name: meta for name, meta in changes.metas.items() if meta.dtype.is_floating_point}
    if not any(name in changes.changed for name in floating):
        raise ExportError(
            "the delta",
            expected="a change of floating-point tensors",
            found="none",
            fix="Check that it leads from one checkpoint to another.",
        )
    metas = {name: TensorMeta(dtype, meta.shape) for name, meta in floating.items()}
    counted = {name: count for name, count in changes.changed.items() if name in floating}
    found = TaskVector(
        dtype=str(dtype).removeprefix("torch."),
        tensors=len(metas),
        numel=sum(meta.numel for meta in metas.values()),
        changed=sum(counted.values()),
        left_out=[name for name in changes.changed if name not in floating],
        files=list(planned(metas, shard_bytes)),
    )
    tally = _Tally(found, dtype, progress)
    if dry_run:
        check_new_folder(path, force=force)
        for name in counted:
            for piece in changes.pieces(name):
                tally.values(piece)
        return tally.closed()

    def parts(name: str) -> Iterator[Tensor]:
        return _dense(changes, name, metas[name], tally)

    ties = {alias: name for alias, name in changes.aliases.items() if name in metas}
    write_folder(path, metas, parts, companions(changes), aliases=ties, force=force, largest=shard_bytes)
    return tally.closed()


def companions(changes: Changes) -> Mapping[str, Path | bytes]:
    """Return the files beside the base that are no weights; none where it is no folder, or not before the change."""
    found = None if changes.base is None or not changes.forward else changes.base.files()
    return {} if found is None else found


class _Tally:
    """Turns pieces into stored differences, and counts what they are."""

    def __init__(self, found: TaskVector, dtype: torch.dtype, progress: Progress | None) -> None:
        self._found, self._dtype, self._progress = found, dtype, progress
        self._squares, self._done = 0.0, 0

    def values(self, piece: Piece) -> Tensor:
        """Return the differences of a piece as they are stored."""
        wide = torch.float64 if torch.float64 in (self._dtype, piece.dtype) else torch.float32
        exact = difference(piece, wide)
        stored = exact.to(self._dtype)
        check_finite(stored, piece)
        again = (piece.before_bits.view(piece.dtype).to(wide) + stored.to(wide)).to(piece.dtype)
        self._found.inexact += int((again.view(piece.after_bits.dtype) != piece.after_bits).sum())
        self._squares += float(exact.double().square().sum())
        self._done += exact.numel()
        if self._progress is not None:
            self._progress(self._done, self._found.changed)
        return stored

    def closed(self) -> TaskVector:
        """Return the sums."""
        self._found.norm = math.sqrt(self._squares)
        return self._found


def _dense(changes: Changes, name: str, meta: TensorMeta, tally: _Tally) -> Iterator[Tensor]:
    """Yield a whole tensor in order, `PIECE` coordinates at most at a time."""
    at = 0
    for piece in changes.pieces(name):
        yield from _zeros(piece.start - at, meta.dtype)
        part = torch.zeros(piece.stop - piece.start, dtype=meta.dtype)
        part[piece.indices.long() - piece.start] = tally.values(piece)
        yield part
        at = piece.stop
    yield from _zeros(meta.numel - at, meta.dtype)


def _zeros(count: int, dtype: torch.dtype) -> Iterator[Tensor]:
    for start in range(0, count, PIECE):
        yield torch.zeros(min(PIECE, count - start), dtype=dtype)
