"""Live weights: the tensors of a module, or of a mapping from names to tensors."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from operator import itemgetter
from typing import Any

import torch
from torch import nn

from rlforget.errors import LayoutError
from rlforget.weights.box import Box
from rlforget.weights.layout import DTYPES, Layout, TensorMeta
from rlforget.weights.ranks import gathered
from rlforget.weights.sharding import Sharding, box_of, here, is_shard, settle, sharding_of
from rlforget.weights.source import Weights
from rlforget_kernels.common.bits import as_bits


class LiveWeights(Weights):
    """Tensors in memory, on whatever device they are.

    Names on one storage (the same address, shape, strides and dtype) are one tensor; the first name is canonical.

    Args:
        description: What these weights are, for messages.
        tensors: Names and tensors, in order.

    Raises:
        LayoutError: A tensor has no plain values in memory (meta, sparse, quantised, sharded, lazy), a dtype outside
            `DTYPES`, or bytes of another tensor without being the same view.
    """

    def __init__(self, description: str, tensors: Mapping[str, torch.Tensor]) -> None:
        self._tensors: dict[str, torch.Tensor] = {}
        aliases: dict[str, str] = {}
        first_name: dict[object, str] = {}
        for name, tensor in tensors.items():
            _check_plain(description, name, tensor)
            # A tensor without bytes shares none, whatever its address says.
            canonical = first_name.setdefault(_identity(tensor), name) if tensor.numel() else name
            if canonical == name:
                self._tensors[name] = tensor.detach()
            else:
                aliases[name] = canonical
        metas = {name: TensorMeta(tensor.dtype, tuple(tensor.shape)) for name, tensor in self._tensors.items()}
        super().__init__(description, metas, aliases)
        _check_disjoint(description, self._tensors)

    def tensor(self, name: str) -> torch.Tensor:
        """Return the live tensor, without gradient tracking; aliases are accepted.

        Raises:
            UnknownNameError: There is no such tensor.
        """
        return self._tensors[self.canonical(name)]

    def bits(self, name: str, start: int = 0, stop: int | None = None, out: torch.Tensor | None = None) -> torch.Tensor:
        """Return the stored bits of a range; see `Weights.bits`."""
        found = as_bits(self.tensor(name))[start:stop].cpu()
        return found if out is None else out.copy_(found)

    def block(self, name: str, box: Box) -> torch.Tensor:
        """Return a block of a tensor, the tensor itself or a view; see `Weights.block`."""
        return self.tensor(name) if box.is_whole else self.tensor(name)[box.slices]


class ShardedWeights(LiveWeights):
    """What this rank holds of tensors that are spread over the ranks of torch.distributed.

    Names, dtypes and shapes are those of the whole tensors, the same on every rank; `tensor` returns the block that is
    here. Every rank has to make one, of the same tensors.

    Args:
        description: What these weights are, for messages.
        tensors: Names and tensors, some of them DTensors or ShardedTensors, in order.

    Raises:
        LayoutError: As for `LiveWeights`, or a block that does not tell its place.
    """

    def __init__(self, description: str, tensors: Mapping[str, Any]) -> None:
        local = {name: here(tensor) for name, tensor in tensors.items()}
        super().__init__(description, local)
        # What is tied on one rank may have no bytes on another, where nothing tells.
        tied = {alias: name for told in gathered(dict(self.aliases)) for alias, name in told.items()}
        kept = [name for name in tensors if name not in tied]
        self._tensors = {name: local[name] for name in kept}
        Layout.__init__(
            self,
            description,
            {name: TensorMeta(local[name].dtype, box_of(tensors[name]).shape) for name in kept},
            {alias: name for alias, name in tied.items() if name in self._tensors},
        )
        self.sharding: Sharding = sharding_of({name: tensors[name] for name in kept})

    def bits(self, name: str, start: int = 0, stop: int | None = None, out: torch.Tensor | None = None) -> torch.Tensor:
        """Return the stored bits of a range of a tensor that is whole here.

        Raises:
            LayoutError: Of this tensor a part is here.
        """
        if not self._box(name).is_whole:
            raise self._elsewhere(name, "all of it")
        return super().bits(name, start, stop, out)

    def block(self, name: str, box: Box) -> torch.Tensor:
        """Return the block that is here.

        Raises:
            LayoutError: It is another.
        """
        if box != self._box(name):
            raise self._elsewhere(name, f"the block of sizes {list(box.sizes)} at {list(box.offsets)}")
        return self.tensor(name)

    def places(self, name: str, indices: torch.Tensor) -> torch.Tensor:
        """Return where flat indices of a whole tensor stand in the block that is here; all of them must be in it."""
        return self._box(name).to_block(indices)

    def _box(self, name: str) -> Box:
        return self.sharding.boxes[self.canonical(name)]

    def _elsewhere(self, name: str, expected: str) -> LayoutError:
        box = self._box(name)
        return LayoutError(
            f"{self.description}, tensor {name!r}",
            expected=expected,
            found=f"the block of sizes {list(box.sizes)} at {list(box.offsets)} of {list(box.shape)} on this rank",
            fix="Shard both models alike, or save one as a checkpoint; gather what is to be read whole.",
        )


def module_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return the parameters and persistent buffers of a module, tied ones under each of their names.

    These are the tensors themselves and the names of `module.state_dict()`, whose hooks may hand out copies. Of a
    module under `fully_shard` they are the shards.
    """
    settle(module)
    return dict(_walk(module))


def _walk(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for path, part in module.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        for name, parameter in part._parameters.items():
            if parameter is not None:
                yield prefix + name, parameter
        for name, buffer in part._buffers.items():
            if buffer is not None and name not in part._non_persistent_buffers_set:
                yield prefix + name, buffer


def _check_plain(description: str, name: str, tensor: torch.Tensor) -> None:
    fault = None
    if isinstance(tensor, nn.UninitializedParameter | nn.UninitializedBuffer):
        fault = "a lazy parameter without a shape"
    elif is_shard(tensor):
        fault = "a sharded tensor"
    elif tensor.layout != torch.strided:
        fault = f"layout {tensor.layout}"
    elif tensor.is_meta:
        fault = "a tensor on the meta device, which has no values"
    elif tensor.dtype not in DTYPES:
        fault = f"dtype {tensor.dtype}"
    elif tensor.is_conj() or tensor.is_neg():
        fault = "a lazily negated view"
    if fault is not None:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        raise LayoutError(
            f"{description}, tensor {name!r}",
            expected=f"a plain tensor in memory, of dtype {names}",
            found=fault,
            fix="Load the model's weights, gathered and dequantised, first.",
        )


def _identity(tensor: torch.Tensor) -> tuple[object, ...]:
    """Return what two tensors share when they are the same view of the same bytes."""
    # Strides of dimensions of size 1 place no element: (n, 1) with strides (1, 1) or (1, n) is one view.
    strides = tuple(stride if size > 1 else 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.device, tensor.data_ptr(), tuple(tensor.shape), strides, tensor.dtype


def _check_disjoint(description: str, tensors: Mapping[str, torch.Tensor]) -> None:
    """Refuse different views of the same bytes: one write would change two tensors."""
    spans: defaultdict[torch.device, list[tuple[int, int, str]]] = defaultdict(list)
    for name, tensor in tensors.items():
        if tensor.numel():
            start = tensor.data_ptr()
            spans[tensor.device].append((start, start + _extent(tensor), name))
    for placed in spans.values():
        group: list[str] = []
        end = 0
        for start, stop, name in sorted(placed, key=itemgetter(0)):
            if group and start >= end:
                _check_group(description, {member: tensors[member] for member in group})
                group, end = [], 0
            group.append(name)
            end = max(end, stop)
        _check_group(description, {member: tensors[member] for member in group})


def _extent(tensor: torch.Tensor) -> int:
    """Return the bytes from a tensor's first element to the end of its last; strides are never negative in torch."""
    if tensor.is_contiguous():
        return tensor.nbytes
    steps = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return int((steps + 1) * tensor.element_size())


def _check_group(description: str, group: Mapping[str, torch.Tensor]) -> None:
    """Refuse an overlap among tensors whose extents touch: columns of one matrix do not overlap, its transpose does."""
    if len(group) < 2:
        return
    start = min(tensor.data_ptr() for tensor in group.values())
    size = max(tensor.data_ptr() + _extent(tensor) for tensor in group.values()) - start
    taken = torch.zeros(size, dtype=torch.bool)  # by byte
    for name, tensor in group.items():
        width = tensor.element_size()
        placed = [(n, stride * width) for n, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride]
        shape, strides = [n for n, _ in placed], [stride for _, stride in placed]
        bytes_of = taken.as_strided((*shape, width), (*strides, 1), tensor.data_ptr() - start)
        if bytes_of.any():
            others = ", ".join(repr(other) for other in group if other != name)
            raise LayoutError(
                f"{description}, tensor {name!r}",
                expected="tensors that are the same view of a storage, or apart",
                found=f"a different view of bytes of another tensor, among {others}",
                fix="Clone one of them.",
            )
        bytes_of.fill_(True)
