"""What changed as a whole: tensors of another shape or dtype or on one side only, and files that are no weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from rlforget.delta.tensor_delta import Fingerprint
from rlforget.weights import TensorMeta
from rlforget_kernels.common.bits import as_bits


@dataclass(frozen=True, eq=False)
class WholeDelta:
    """A tensor that is in one of two sets of weights alone, or that changed its shape or dtype.

    Attributes:
        name: Its canonical name; where it was renamed, that before.
        before: Its values before, in the stored dtype, on the CPU; None: there was none.
        after: Its values after; None: there is none any more. One of the two is there.
        fingerprint_before: Fingerprint of `before`, where there is one.
        fingerprint_after: Fingerprint of `after`, likewise.
    """

    name: str
    before: torch.Tensor | None
    after: torch.Tensor | None
    fingerprint_before: Fingerprint | None
    fingerprint_after: Fingerprint | None

    @property
    def meta_before(self) -> TensorMeta | None:
        """Dtype and shape before."""
        return _meta(self.before)

    @property
    def meta_after(self) -> TensorMeta | None:
        """Dtype and shape after."""
        return _meta(self.after)

    def invert(self) -> WholeDelta:
        """Return the change that leads back."""
        return WholeDelta(self.name, self.after, self.before, self.fingerprint_after, self.fingerprint_before)

    def __eq__(self, other: object) -> bool:
        """Whether both say the same about a tensor of the same name, bit for bit."""
        if not isinstance(other, WholeDelta):
            return NotImplemented
        return self.name == other.name and _same(self.before, other.before) and _same(self.after, other.after)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"WholeDelta({self.name!r}, {self.meta_before} -> {self.meta_after})"


@dataclass(frozen=True)
class FileDelta:
    """A file of a checkpoint folder that is no weights, e.g. config or tokenizer, and changed.

    Attributes:
        name: Its name, without a folder.
        before: Its bytes before; None: there was none.
        after: Its bytes after; None: there is none any more.
    """

    name: str
    before: bytes | None
    after: bytes | None

    def invert(self) -> FileDelta:
        """Return the change that leads back."""
        return FileDelta(self.name, self.after, self.before)


def file_size(file: Path | bytes | None) -> int | None:
    """Return how many bytes a file has; None where it is not there."""
    return file.stat().st_size if isinstance(file, Path) else None if file is None else len(file)


def file_content(file: Path | bytes | None) -> bytes | None:
    """Return a file's bytes; None where it is not there."""
    return file.read_bytes() if isinstance(file, Path) else file


def _meta(tensor: torch.Tensor | None) -> TensorMeta | None:
    return None if tensor is None else TensorMeta(tensor.dtype, tuple(tensor.shape))


def _same(first: torch.Tensor | None, second: torch.Tensor | None) -> bool:
    if first is None or second is None:
        return first is second
    return _meta(first) == _meta(second) and torch.equal(as_bits(first), as_bits(second))
