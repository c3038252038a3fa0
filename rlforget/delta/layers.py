"""A delta as a layer over weights: what it makes of a range of bits, in one direction."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rlforget.delta.delta import Delta
from rlforget.delta.sharded import check_whole
from rlforget.delta.sides import after_side, before_side
from rlforget.delta.tensor_delta import Fingerprint, TensorDelta
from rlforget.delta.whole import file_size
from rlforget.errors import WrongBaseError
from rlforget.weights import Layout
from rlforget_kernels.common.bits import as_bits
from rlforget_kernels.patch import patch_

if TYPE_CHECKING:
    from rlforget.delta.file import DeltaFile


class Layer(ABC):
    """A delta, forward or backward. Tensors go by their names before, unless another is said."""

    description: str
    before: Layout
    after: Layout
    renamed: Mapping[str, str]

    @abstractmethod
    def kept(self, name: str) -> bool:
        """Whether a tensor keeps its shape and dtype."""

    @abstractmethod
    def changed(self, name: str) -> bool:
        """Whether any coordinate of a tensor that keeps its shape and dtype changes."""

    @abstractmethod
    def lanes(self, name: str) -> tuple[Fingerprint | None, Fingerprint | None]:
        """Return a tensor's fingerprints before and after; None where it is not there."""

    @abstractmethod
    def change_(self, name: str, start: int, stop: int, bits: Tensor) -> None:
        """Turn the bits of [start, stop) before into those after, in place.

        Raises:
            WrongBaseError: They are not the bits before, as far as the delta knows them.
        """

    @abstractmethod
    def whole_bits(self, name: str, start: int, stop: int) -> Tensor:
        """Return the bits of a range after, of a tensor that changed as a whole."""

    @abstractmethod
    def file_sizes(self) -> Mapping[str, tuple[int | None, int | None]]:
        """Return the sizes before and after of the files that are no weights and changed; None: not there."""

    @abstractmethod
    def file(self, name: str) -> tuple[bytes | None, bytes | None]:
        """Return the bytes before and after of one of them."""

    @property
    @abstractmethod
    def checks_bits(self) -> bool:
        """Whether `change_` finds a wrong base by itself; if not, the fingerprint of what it makes must be checked."""


class MemoryLayer(Layer):
    """A delta in memory.

    Args:
        delta: Run forward; give its inverse to run it backward.

    Raises:
        LayoutError: It is one rank's part of a delta.
    """

    def __init__(self, delta: Delta) -> None:
        check_whole(delta)
        self._delta = delta
        self.description = "the delta"
        self.before, self.after, self.renamed = delta.layout_before, delta.layout_after, delta.renamed

    def kept(self, name: str) -> bool:
        """Whether it keeps its shape and dtype."""
        return name not in self._delta.whole and name in self._delta

    def changed(self, name: str) -> bool:
        """Whether any coordinate changes."""
        return self._delta[name].changed > 0

    def lanes(self, name: str) -> tuple[Fingerprint | None, Fingerprint | None]:
        """Return the fingerprints before and after."""
        tensor = self._delta[name] if self.kept(name) else self._delta.whole[name]
        return tensor.fingerprint_before, tensor.fingerprint_after

    def change_(self, name: str, start: int, stop: int, bits: Tensor) -> None:
        """Write the new bits where the old ones are."""
        patch = self._delta[name]
        first, last = torch.searchsorted(patch.indices, torch.tensor([start, stop], dtype=patch.indices.dtype)).tolist()
        at = patch.indices[first:last] - start
        old, new = patch.before_bits[first:last], patch.after_bits[first:last]
        if int(patch_(bits, at, old, new)):
            raise wrong_bits("the weights", patch, bits.index_select(0, at), first, last)

    def whole_bits(self, name: str, start: int, stop: int) -> Tensor:
        """Return bits of the tensor after."""
        value = self._delta.whole[name].after
        assert value is not None  # asked for where it is there
        return as_bits(value)[start:stop]

    def file_sizes(self) -> Mapping[str, tuple[int | None, int | None]]:
        """Return the sizes of the changed files."""
        return {name: (file_size(file.before), file_size(file.after)) for name, file in self._delta.files.items()}

    def file(self, name: str) -> tuple[bytes | None, bytes | None]:
        """Return the bytes of a changed file."""
        file = self._delta.files[name]
        return file.before, file.after

    @property
    def checks_bits(self) -> bool:
        """It knows the old bits."""
        return True


class FileLayer(Layer):
    """A delta in its file: frames are decoded as the ranges they cover are asked for.

    Args:
        file: The file.
        backward: Lead back, from after to before.

    Raises:
        DeltaFileError: It is to lead back and lacks the bits before of something that changed as a whole.
    """

    def __init__(self, file: DeltaFile, *, backward: bool = False) -> None:
        self._file, self._backward = file, backward
        self.description = str(file.path)
        kept = {name: entry.meta for name, entry in file.tensors.items()}
        whole = {name: (entry.before, entry.after) for name, entry in file.whole.items()}
        sides = before_side(kept, whole, file.aliases), after_side(kept, whole, file.aliases, file.renamed)
        self.before, self.after = sides[::-1] if backward else sides
        self._first = {new: old for old, new in file.renamed.items()} if backward else {}
        self.renamed = self._first if backward else file.renamed
        gone = [name for name, entry in file.whole.items() if entry.before is not None]
        if backward and gone and not file.self_contained:
            raise file.needs_base(f"the bits of {gone[0]!r} before")

    def _own(self, name: str) -> str:
        """Return what the file calls a tensor: the name before, where it runs forward."""
        return self._first.get(name, name)

    def kept(self, name: str) -> bool:
        """Whether it keeps its shape and dtype."""
        return self._own(name) in self._file.tensors

    def changed(self, name: str) -> bool:
        """Whether any coordinate changes."""
        return self._file.tensors[self._own(name)].changed > 0

    def lanes(self, name: str) -> tuple[Fingerprint | None, Fingerprint | None]:
        """Return the fingerprints before and after."""
        name = self._own(name)
        entry = self._file.tensors[name] if name in self._file.tensors else self._file.whole[name]
        lanes = (entry.fingerprint_before, entry.fingerprint_after)
        return lanes[::-1] if self._backward else lanes

    def change_(self, name: str, start: int, stop: int, bits: Tensor) -> None:
        """Take the steps that lie in the range."""
        patch = self._file.patch(self._own(name), start, stop)
        (patch.backward_ if self._backward else patch.forward_)(bits)

    def whole_bits(self, name: str, start: int, stop: int) -> Tensor:
        """Return bits of the tensor at the end."""
        return self._file.whole_bits(self._own(name), "before" if self._backward else "after", start, stop)

    def file_sizes(self) -> Mapping[str, tuple[int | None, int | None]]:
        """Return the sizes of the changed files, by the table alone."""
        sizes = {name: (file.before, file.after) for name, file in self._file.files.items()}
        return {name: pair[::-1] for name, pair in sizes.items()} if self._backward else sizes

    def file(self, name: str) -> tuple[bytes | None, bytes | None]:
        """Decode a changed file."""
        pair = self._file.file_bytes(name, "before"), self._file.file_bytes(name, "after")
        return pair[::-1] if self._backward else pair

    @property
    def checks_bits(self) -> bool:
        """Steps lead somewhere from any bits."""
        return False


def wrong_bits(where: str, patch: TensorDelta, held: Tensor, first: int = 0, last: int | None = None) -> WrongBaseError:
    """Build the error for weights that hold `held` where the changes [first, last) of `patch` expect their old bits."""
    expected, after, indices = (t[first:last] for t in (patch.before_bits, patch.after_bits, patch.indices))
    wrong = (held != expected).nonzero().flatten()
    place = int(wrong[0])
    done = torch.equal(held, after)
    return WrongBaseError(
        f"{where}, tensor {patch.name!r}",
        expected=f"the delta's old bits at {expected.numel()} coordinates",
        found=f"other bits at {wrong.numel()} of them, first at index {int(indices[place])}: "
        f"{_hex(held[place])} in place of {_hex(expected[place])}",
        fix="It is there already: nothing is left to do." if done else "Take the weights that the delta was made from.",
    )


def _hex(bits: Tensor) -> str:
    width = bits.element_size()
    return f"0x{int(bits) % (1 << 8 * width):0{2 * width}x}"
