"""Folders that torch.distributed.checkpoint wrote: tensors in chunks, as the ranks of a training held them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from rlforget.weights.buffers import buffer
from rlforget.weights.checkpoint import natural_order
from rlforget.weights.checkpoint_files import companions
from rlforget.weights.chunks import Values
from rlforget.weights.distributed_items import Item, damaged
from rlforget.weights.distributed_metadata import read_contents
from rlforget.weights.source import Weights
from rlforget_kernels.common.bits import bits_dtype


class DistributedWeights(Weights):
    """The model's tensors in a folder that `torch.distributed.checkpoint.save` wrote, read range by range.

    Names are those of the model. Where the state dict that was saved is nested and one of its parts is called `model`,
    at whatever depth (`{"model": ..., "optimizer": ...}`, or an application's `{"app": {"model": ..., "optim": ...}}`),
    that part alone is read, and `model` and what is before it are left out of the names. Else everything is read but a
    part called optimizer, optimizers or optim. Objects that are no tensors are left out: they are pickles.

    Tied tensors were saved once under each name, and stay so.

    Args:
        path: The folder.

    Attributes:
        path: The folder.
        shards: The files that hold the values, sorted.
        prefix: What was left out of the names, as keys of nested dicts.
        left_out: The full names of all in the folder that is not read.

    Raises:
        NotACheckpointError: The folder is damaged or not finished, its chunks do not make up the tensors, it has
            several parts called `model`, or holds what `FileSystemWriter` with torch's own planner does not write.
    """

    def __init__(self, path: Path) -> None:
        contents = read_contents(path)
        self.path, self.prefix, self.left_out = path, contents.prefix, contents.left_out
        self._stored = contents.tensors
        self.shards = sorted({item.file for stored in self._stored.values() for item in stored.items})
        self._values: dict[Item, Values] = {}
        names = sorted(self._stored, key=natural_order)
        super().__init__(str(path), {name: self._stored[name].meta for name in names}, {})

    def tensor(self, name: str) -> torch.Tensor:
        """Return a whole tensor, put together in memory of its own."""
        meta = self.meta(name)
        bits = torch.empty(meta.numel, dtype=bits_dtype(meta.dtype))
        return self.bits(name, out=bits).view(meta.dtype).view(meta.shape)

    def bits(self, name: str, start: int = 0, stop: int | None = None, out: torch.Tensor | None = None) -> torch.Tensor:
        """Read the stored bits of a range from the chunks that hold it; see `Weights.bits`."""
        meta = self.meta(name)
        stop = meta.numel if stop is None else stop
        if out is None:
            out = buffer(stop - start, bits_dtype(meta.dtype))
        for item in self._stored[self.canonical(name)].items:
            if pieces := list(item.box.runs(start, stop)):
                self._read(item, name, pieces, out, start)
        return out

    def files(self) -> Mapping[str, Path]:
        """Return the folder's top-level files that hold no weights, by name."""
        return companions(self.path)

    def check_items(self) -> None:
        """Look at the head of every item of the model.

        Raises:
            NotACheckpointError: One is damaged, or not what the metadata say.
        """
        for name, stored in self._stored.items():
            for item in stored.items:
                self._find(item, name)

    def _find(self, item: Item, name: str) -> Values:
        if item not in self._values:
            self._values[item] = item.find(self.meta(name))
        return self._values[item]

    def _read(self, item: Item, name: str, pieces: list[tuple[slice, slice]], out: torch.Tensor, start: int) -> None:
        """Put runs of the item's values where they belong in a range that begins at `start`."""
        values, (first, last) = self._find(item, name), (pieces[0][0].start, pieces[-1][0].stop)
        straight = len(pieces) == 1
        place = pieces[0][1].start - start
        part = out[place : place + last - first] if straight else buffer(last - first, out.dtype)
        try:
            values.read(item.box.sizes, first, part)
        except OSError as fault:
            raise damaged(str(item.file), "a whole file of values", str(fault)) from fault
        if not straight:
            source, target = part.numpy(), out.numpy()
            for here, there in pieces:
                target[there.start - start : there.stop - start] = source[here.start - first : here.stop - first]
