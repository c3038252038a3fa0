"""A delta as plain tensors: where it changed, and the values there before and after, for readers without rlforget."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor

from rlforget.delta.delta import Delta
from rlforget.delta.exporting.changes import Changes
from rlforget.delta.exporting.shards import bytes_of
from rlforget.delta.patching import DeltaLike
from rlforget.delta.scan import PIECE, Piece
from rlforget.weights import TensorMeta, WeightsLike
from rlforget.weights.ahead import Progress
from rlforget.weights.atomic import check_free, new_file
from rlforget.weights.safetensors_file import header_text
from rlforget_kernels.common.bits import as_bits, index_dtype

FORMAT, VERSION = "rlforget.coordinates", "1"
COLUMNS = ("indices", "before", "after")
WHOLE = "whole"


@dataclass(frozen=True)
class Coordinates:
    """What a file of coordinates holds.

    Attributes:
        tensors: How many tensors changed some of their coordinates.
        changed: How many coordinates those are.
        whole: How many tensors are there as a whole: added, resized or retyped.
        dropped: Names of tensors that are there no more.
        left_out: Names of changed files that are no weights, and so not in it.
        bytes: The size of the file.
    """

    tensors: int
    changed: int
    whole: int
    dropped: list[str]
    left_out: list[str]
    bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain values."""
        return asdict(self)

    def table(self) -> str:
        """Return it as text for people."""
        lines = [f"{self.changed:,} coordinates of {self.tensors:,} tensors, {self.bytes:,} bytes"]
        lines += [f"{self.whole:,} tensors as a whole"] if self.whole else []
        lines += [f"dropped tensor: {name}" for name in self.dropped]
        return "\n".join(lines + [f"left out, a file that is no weights: {name}" for name in self.left_out])


def export_coordinates(
    delta: DeltaLike,
    path: str | PathLike[str],
    *,
    base: WeightsLike | None = None,
    dry_run: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> Coordinates:
    """Write the changed coordinates as plain tensors into one safetensors file, range by range; docs/export.md.

    For a tensor NAME of which coordinates changed: `NAME.indices` (flat, ascending; int32, int64 from 2**31 coordinates
    on), `NAME.before` and `NAME.after` in the stored dtype; for one that was added, resized or retyped `NAME.whole`,
    all of it after. Names are those before.

    Args:
        delta: A delta, its file, or the file's path.
        path: The file to create.
        base: The weights at either end; needed for a file that is not self-contained.
        dry_run: Measure, and write nothing.
        force: Replace a file that is there.
        progress: Told how many columns' coordinates are written, and of how many.

    Raises:
        DeltaFileError, WrongBaseError, LayoutError: As for `Delta.load`.
        OutputError: `path` exists, or cannot be written.
    """
    path, changes = Path(path), Changes(delta, base)
    wholes = _wholes(changes)
    metas = {f"{name}.{WHOLE}": meta for name, meta in wholes.items()}
    for name, count in changes.changed.items():
        kept = changes.metas[name]
        for column in COLUMNS:
            dtype = index_dtype(kept.numel) if column == "indices" else kept.dtype
            metas[f"{name}.{column}"] = TensorMeta(dtype, (count,))
    dropped = [name for name in changes.whole() if name not in wholes]
    text, order = header_text(metas, _metadata(changes, dropped))
    size = len(text) + sum(meta.numel * meta.dtype.itemsize for meta in metas.values())
    found = Coordinates(
        len(changes.changed), sum(changes.changed.values()), len(wholes), dropped, list(changes.delta.files), size
    )
    if dry_run:
        check_free(path, force=force)
        for name in changes.changed:
            for _ in changes.pieces(name):
                pass
        return found
    done, total = 0, sum(meta.numel for meta in metas.values())
    with new_file(path, force=force) as file:
        file.write(text)
        for key in order:
            for part in _parts(changes, key, metas[key]):
                file.write(bytes_of(part))
                done += part.numel()
                if progress is not None:
                    progress(done, total)
    return found


def _wholes(changes: Changes) -> dict[str, TensorMeta]:
    """Return dtype and shape after of the tensors that are there as a whole."""
    if isinstance(changes.delta, Delta):
        return {name: one.meta_after for name, one in changes.delta.whole.items() if one.meta_after is not None}
    return {name: entry.after for name, entry in changes.delta.whole.items() if entry.after is not None}


def _metadata(changes: Changes, dropped: list[str]) -> dict[str, str]:
    shapes = {name: list(changes.metas[name].shape) for name in changes.changed}
    facts = {"shapes": shapes, "aliases": dict(changes.aliases), "renamed": changes.delta.renamed, "dropped": dropped}
    return {"format": FORMAT, "version": VERSION} | {key: json.dumps(fact) for key, fact in facts.items()}


def _parts(changes: Changes, key: str, meta: TensorMeta) -> Iterator[Tensor]:
    name, _, column = key.rpartition(".")
    if column != WHOLE:
        for piece in changes.pieces(name):
            yield _column(piece, column)
    elif isinstance(changes.delta, Delta):
        value = changes.delta.whole[name].after
        assert value is not None  # as it is in the table
        yield as_bits(value)
    else:
        for start in range(0, meta.numel, PIECE):
            yield changes.delta.whole_bits(name, "after", start, min(start + PIECE, meta.numel))


def _column(piece: Piece, column: str) -> Tensor:
    return {"indices": piece.indices, "before": piece.before_bits, "after": piece.after_bits}[column]
