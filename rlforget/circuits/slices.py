"""Which entries of which tensors are an attention head's: its q, k, v and o slices."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from rlforget.circuits.heads import HeadSites
from rlforget.errors import ConfigError, LayoutError
from rlforget.weights import open_weights

Head: TypeAlias = tuple[int, int]
"""A decoder layer and a query head in it, both counted from 0."""

Heads: TypeAlias = Tensor | Iterable[Head]
"""Chosen heads: a bool mask [layers, heads], or pairs (layer, head)."""

Part: TypeAlias = Literal["q", "k", "v", "o"]

SHARED = ("all", "any")
"""When a slice that several heads share is chosen: when all of them are, or when any is."""


class HeadSlice(NamedTuple):
    """A band of a tensor.

    Attributes:
        tensor: Canonical name of the tensor in the model.
        part: What it computes: queries, keys, values, or the output.
        dim: The dimension along which the band lies; a bias has only one.
        start: Its first position there.
        stop: The position after its last.
    """

    tensor: str
    part: Part
    dim: int
    start: int
    stop: int

    def of(self, tensor: Tensor) -> Tensor:
        """Return the band as a view of `tensor`."""
        return tensor.narrow(self.dim, self.start, self.stop - self.start) if tensor.dim() else tensor

    def holds(self, indices: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Tell which flat indices into a tensor of `shape` lie in the band.

        Args:
            indices: Integers, any shape, in row-major order of the tensor.
            shape: The tensor's shape.

        Returns:
            bool, the shape of `indices`.
        """
        if not shape:
            return torch.ones_like(indices, dtype=torch.bool)
        at = (indices // math.prod(shape[self.dim + 1 :])) % shape[self.dim]
        return (at >= self.start) & (at < self.stop)


class HeadSlices:
    """The slices of every head of a model.

    A query head has its rows of the query projection with their bias, and its columns of the output projection. What
    several heads share belongs to all of them: the key and value rows of a group (grouped-query attention), the output
    bias, norms of queries or keys that are one vector for all heads, any other parameter of the attention module, and
    whatever layers tied to each other share. Layer norms before and after the attention belong to no head.

    Separate projections (`q_proj`, `k_proj`, `v_proj`: Llama, Qwen, Gemma, OPT, GPT-J, ...) and fused ones are known:
    `c_attn` (GPT-2's Conv1D, whose weight lies transposed), `qkv_proj` (Phi-3) and `Wqkv` (MPT), which hold queries,
    keys, values one after another, and `query_key_value` (GPT-NeoX, BLOOM, Falcon), which holds them group by group.
    A query row that is gated (Qwen3-Next) goes with its gate.

    Args:
        model: A transformers causal language model.

    Attributes:
        shape: Layers, and query heads in each.
        owners: Every slice, with the heads that it belongs to.

    Raises:
        LayoutError: The attention is of another form, quantised, sharded, or wrapped in an adapter.
    """

    def __init__(self, model: nn.Module) -> None:
        sites = HeadSites(model)
        canonical = open_weights(model).canonical
        owners: defaultdict[HeadSlice, set[Head]] = defaultdict(set)
        for layer, name in enumerate(sites.names):
            attention = _Attention(
                name, sites.attentions[layer], sites.modules[layer], sites.heads[layer], sites.head_dim[layer]
            )
            for found, its_heads in attention.slices():
                owners[found._replace(tensor=canonical(found.tensor))].update((layer, head) for head in its_heads)
        self.shape: tuple[int, int] = sites.shape
        self.owners: Mapping[HeadSlice, frozenset[Head]] = {band: frozenset(heads) for band, heads in owners.items()}

    def all_heads(self) -> list[Head]:
        """Return every head of the model, in order."""
        layers, heads = self.shape
        return [(layer, head) for layer in range(layers) for head in range(heads)]

    def of(self, head: Head) -> list[HeadSlice]:
        """Return the slices of one head, those that it shares with others included."""
        return [band for band, owners in self.owners.items() if head in owners]

    def heads(self, chosen: Heads) -> frozenset[Head]:
        """Return chosen heads as pairs.

        Raises:
            ConfigError: A mask of another shape or dtype, or a head that the model does not have.
        """
        if isinstance(chosen, Tensor):
            if chosen.dtype != torch.bool or tuple(chosen.shape) != self.shape:
                raise ConfigError(
                    "heads",
                    expected=f"a bool mask {list(self.shape)}",
                    found=f"{str(chosen.dtype).removeprefix('torch.')}{list(chosen.shape)}",
                    fix="Use a circuit of this very model, or pairs (layer, head).",
                )
            pairs = [(int(layer), int(head)) for layer, head in chosen.nonzero().tolist()]
        else:
            pairs = [(int(layer), int(head)) for layer, head in chosen]
        for layer, head in pairs:
            if not (0 <= layer < self.shape[0] and 0 <= head < self.shape[1]):
                raise ConfigError(
                    f"head {layer}:{head}",
                    expected=f"a layer below {self.shape[0]} and a head below {self.shape[1]}",
                    found=f"layer {layer}, head {head}",
                    fix="Both are counted from 0.",
                )
        return frozenset(pairs)

    def chosen(self, heads: Heads, *, shared: Literal["all", "any"] = "all") -> list[HeadSlice]:
        """Return the slices that chosen heads stand for.

        Args:
            heads: A bool mask [layers, heads], or pairs (layer, head).
            shared: Whether a slice that several heads share is among them when all of these are chosen, or when any is.

        Raises:
            ConfigError: A head that the model does not have, or another `shared`.
        """
        if shared not in SHARED:
            raise ConfigError("shared", expected=f"one of {', '.join(SHARED)}", found=repr(shared), fix="Choose one.")
        wanted = self.heads(heads)
        takes = wanted.issuperset if shared == "all" else lambda owners: not wanted.isdisjoint(owners)
        return [band for band, owners in self.owners.items() if takes(owners)]


_Owned: TypeAlias = tuple[HeadSlice, range]  # a slice, and the heads of its layer that it belongs to

_SEPARATE: dict[Part, str] = {"q": "q_proj", "k": "k_proj", "v": "v_proj"}
_IN_A_ROW = ("c_attn", "qkv_proj", "Wqkv")  # all queries, all keys, all values
_BY_GROUP = ("query_key_value",)  # the queries, the key and the value of one group after another
_NORMS: dict[str, Part] = {
    "q_norm": "q",
    "k_norm": "k",
    "q_layernorm": "q",
    "k_layernorm": "k",
}


class _Attention:
    """The attention of one layer.

    Args:
        name: Its path in the model.
        module: The attention module.
        output: Its output projection.
        heads: Number of query heads.
        width: Size of a head's output.
    """

    def __init__(self, name: str, module: nn.Module, output: nn.Module, heads: int, width: int) -> None:
        self._prefix = f"{name}."
        self._module, self._heads, self._width = module, heads, width
        self._output = next(child for child, found in module.named_children() if found is output)

    def slices(self) -> Iterator[_Owned]:
        """Yield every slice; together they are all parameters of the attention."""
        seen = set()
        for found, heads in (*self._inputs(), *self._norms(), *self._sinks(), *self._columns()):
            seen.add(found.tensor)
            yield found, heads
        for name, parameter in self._module.named_parameters(prefix=self._prefix.removesuffix(".")):
            if name not in seen:
                size = parameter.shape[0] if parameter.dim() else 1
                yield HeadSlice(name, _part_of(name.removeprefix(self._prefix)), 0, 0, size), range(self._heads)

    def _inputs(self) -> Iterator[_Owned]:
        """Yield the queries, keys and values."""
        fused = next((name for name in (*_IN_A_ROW, *_BY_GROUP) if hasattr(self._module, name)), None)
        if fused is not None:
            yield from self._fused(fused)
        elif all(hasattr(self._module, name) for name in _SEPARATE.values()):
            for part, name in _SEPARATE.items():
                rows = self._linear(name)
                groups = self._heads if part == "q" else self._groups(rows, name)
                for group in range(groups):
                    yield from self._rows(name, part, group * (rows // groups), rows // groups, self._of(group, groups))
        else:
            children = ", ".join(name for name, _ in self._module.named_children())
            raise self._unknown("projections of queries, keys and values", children or "none")

    def _fused(self, name: str) -> Iterator[_Owned]:
        rows, width, heads = self._linear(name), self._width, self._heads
        groups = (rows // width - heads) // 2
        if rows != (heads + 2 * groups) * width or groups < 1 or heads % groups:
            raise self._unknown(f"{name} with rows for {heads} query heads of {width}", f"{rows} rows")
        a_group = heads // groups
        by_group = name in _BY_GROUP or getattr(self._module, "multi_query", True) is False  # GPTBigCode without it
        for head in range(heads):
            start = head + 2 * (head // a_group) if by_group else head
            yield from self._rows(name, "q", start * width, width, range(head, head + 1))
        for group in range(groups):
            for offset, part in enumerate(("k", "v")):
                start = (group + 1) * (a_group + 2) - 2 + offset if by_group else heads + offset * groups + group
                yield from self._rows(name, part, start * width, width, self._of(group, groups))  # type: ignore[arg-type]

    def _rows(self, name: str, part: Part, start: int, size: int, heads: range) -> Iterator[_Owned]:
        """Yield some outputs of an input projection: rows of a linear layer, columns of a Conv1D, and their bias."""
        module: Any = getattr(self._module, name)
        dim = 0 if isinstance(module, nn.Linear) else 1
        yield HeadSlice(f"{self._prefix}{name}.weight", part, dim, start, start + size), heads
        if module.bias is not None:
            yield HeadSlice(f"{self._prefix}{name}.bias", part, 0, start, start + size), heads

    def _columns(self) -> Iterator[_Owned]:
        """Yield the inputs of the output projection, and its bias, which all heads share."""
        module: Any = getattr(self._module, self._output)
        self._linear(self._output)
        dim = 1 if isinstance(module, nn.Linear) else 0
        name, width = f"{self._prefix}{self._output}", self._width
        for head in range(self._heads):
            yield HeadSlice(f"{name}.weight", "o", dim, head * width, (head + 1) * width), range(head, head + 1)
        if module.bias is not None:
            yield HeadSlice(f"{name}.bias", "o", 0, 0, module.bias.numel()), range(self._heads)

    def _norms(self) -> Iterator[_Owned]:
        """Yield norms of queries and keys that hold a part for every head; others are one vector for all heads."""
        for name, part in _NORMS.items():
            module = getattr(self._module, name, None)
            for kind, weight in module.named_parameters(recurse=False) if isinstance(module, nn.Module) else ():
                by_row = weight.dim() == 2  # Cohere's, [heads, head_dim]
                groups = weight.shape[0] if by_row else weight.numel() // self._width
                if groups < 1 or self._heads % groups or (not by_row and weight.numel() % self._width):
                    continue
                size = weight.shape[0] // groups
                for group in range(groups):
                    band = HeadSlice(f"{self._prefix}{name}.{kind}", part, 0, group * size, (group + 1) * size)
                    yield band, self._of(group, groups)

    def _sinks(self) -> Iterator[_Owned]:
        """Yield gpt-oss's attention sinks, a number a head."""
        sinks = getattr(self._module, "sinks", None)
        if isinstance(sinks, nn.Parameter) and tuple(sinks.shape) == (self._heads,):
            for head in range(self._heads):
                yield HeadSlice(f"{self._prefix}sinks", "q", 0, head, head + 1), range(head, head + 1)

    def _linear(self, name: str) -> int:
        """Return the outputs of a projection, which must be a plain one."""
        module: Any = getattr(self._module, name)
        weight = getattr(module, "weight", None)
        if not isinstance(weight, Tensor) or weight.dim() != 2 or hasattr(module, "base_layer"):
            raise self._unknown(f"{name} to be a linear layer", type(module).__name__)
        return weight.shape[0] if isinstance(module, nn.Linear) else weight.shape[1]

    def _groups(self, rows: int, name: str) -> int:
        """Return how many key or value heads a projection has."""
        groups = rows // self._width
        if rows % self._width or not groups or self._heads % groups:
            raise self._unknown(f"{name} with {self._width} rows a head, heads in equal groups", f"{rows} rows")
        return groups

    def _of(self, group: int, groups: int) -> range:
        """Return the query heads of a group."""
        size = self._heads // groups
        return range(group * size, (group + 1) * size)

    def _unknown(self, expected: str, found: str) -> LayoutError:
        return LayoutError(
            f"attention {self._prefix.removesuffix('.')!r}",
            expected=expected,
            found=found,
            fix="Merge adapters and dequantise first; other forms of attention are not known.",
        )


def _part_of(name: str) -> Part:
    """Return what a parameter of the attention takes part in, by its first letter as far as that tells."""
    return name[0] if name[0] in "qkv" else "o"  # type: ignore[return-value]
