"""What a set of weights looks like: names, dtypes and shapes, and which names share one storage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch

from rlforget.errors import LayoutError, UnknownNameError

DTYPES: tuple[torch.dtype, ...] = (
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
)
"""The dtypes that weights may have: those every operator takes."""

_NAMES_SHOWN = 5


@dataclass(frozen=True)
class TensorMeta:
    """Dtype and shape of one tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """The number of coordinates; 1 for a 0-d tensor."""
        count = 1
        for size in self.shape:
            count *= size
        return count

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')}{list(self.shape)}"


class Layout:
    """Named tensors without their values.

    Args:
        description: What these weights are, for messages, e.g. a path.
        metas: One entry a storage, by canonical name, in order.
        aliases: Every further name of a storage, with the canonical name it stands for.
    """

    def __init__(self, description: str, metas: Mapping[str, TensorMeta], aliases: Mapping[str, str]) -> None:
        self.description = description
        self._metas = dict(metas)
        self.aliases: Mapping[str, str] = dict(aliases)

    def names(self) -> list[str]:
        """Return the canonical names, one a storage, in order."""
        return list(self._metas)

    def all_names(self) -> Iterator[str]:
        """Yield the canonical names, then the aliases."""
        yield from self._metas
        yield from self.aliases

    def __contains__(self, name: object) -> bool:
        return name in self._metas or name in self.aliases

    def canonical(self, name: str) -> str:
        """Return the canonical name of the storage that `name` stands for.

        Raises:
            UnknownNameError: There is no such tensor.
        """
        if name in self._metas:
            return name
        if name in self.aliases:
            return self.aliases[name]
        raise UnknownNameError(
            f"tensor {name!r}",
            expected=f"a tensor of {self.description}",
            found="no tensor of that name",
            fix="List the names with .names().",
        )

    def meta(self, name: str) -> TensorMeta:
        """Return dtype and shape of a tensor; aliases are accepted.

        Raises:
            UnknownNameError: There is no such tensor.
        """
        return self._metas[self.canonical(name)]


class Pair(NamedTuple):
    """One storage of each of two sets of weights, matched by a name they share."""

    name: str
    before: str
    after: str


def pair_up(before: Layout, after: Layout) -> list[Pair]:
    """Match the storages of two sets of weights by name, and check that they fit.

    Two storages match when any name of the one is a name of the other, so that a tied tensor may be canonical under
    different names, or be dropped under one of them. A storage that is tied on one side only appears once for each
    storage that it meets on the other.

    Returns:
        The pairs, in the order of `before`. `Pair.name` is the canonical name in `before` where that is known on both
        sides.

    Raises:
        LayoutError: Tensors are missing, extra, resized or retyped; the message lists them by name.
    """
    names: dict[tuple[str, str], str] = {}
    for name in [*before.all_names(), *after.all_names()]:
        if name in before and name in after:
            names.setdefault((before.canonical(name), after.canonical(name)), name)
    pairs = [Pair(name, b, a) for (b, a), name in names.items()]

    faults = _unmatched("missing", before, {pair.before for pair in pairs})
    faults += _unmatched("extra", after, {pair.after for pair in pairs})
    faults += _changed_shape(pairs, before, after)
    faults += _changed_dtype(pairs, before, after)
    if faults:
        raise LayoutError(
            after.description,
            expected=f"the names, shapes and dtypes of {before.description}",
            found="; ".join(faults),
            fix="Give two checkpoints of one architecture, in one dtype.",
        )
    return pairs


def check_layout(before: Layout, after: Layout) -> None:
    """Check that two sets of weights have the same tensors, by name, shape and dtype.

    Raises:
        LayoutError: They have not; the message lists what is missing, extra, resized and retyped.
    """
    pair_up(before, after)


def merged_aliases(pairs: list[Pair], before: Layout, after: Layout) -> dict[str, str]:
    """Return every further name of the paired storages, with the pair's name it stands for.

    A name that stands for two different pairs (tied on one side, untied on the other) is left out.
    """
    by_before: dict[str, set[str]] = {}
    by_after: dict[str, set[str]] = {}
    for pair in pairs:
        by_before.setdefault(pair.before, set()).add(pair.name)
        by_after.setdefault(pair.after, set()).add(pair.name)
    aliases = {}
    for name in dict.fromkeys([*before.all_names(), *after.all_names()]):
        owners = by_before[before.canonical(name)] if name in before else by_after[after.canonical(name)]
        if name in before and name in after:
            owners = owners & by_after[after.canonical(name)]
        if len(owners) == 1 and name not in owners:
            aliases[name] = next(iter(owners))
    return aliases


def _unmatched(kind: str, layout: Layout, matched: set[str]) -> list[str]:
    return _listing(kind, [name for name in layout.names() if name not in matched])


def _changed_shape(pairs: list[Pair], before: Layout, after: Layout) -> list[str]:
    return _listing(
        "resized",
        [
            f"{name} {list(before.meta(b).shape)} -> {list(after.meta(a).shape)}"
            for name, b, a in pairs
            if before.meta(b).shape != after.meta(a).shape
        ],
    )


def _changed_dtype(pairs: list[Pair], before: Layout, after: Layout) -> list[str]:
    return _listing(
        "retyped",
        [
            f"{name} {before.meta(b).dtype} -> {after.meta(a).dtype}"
            for name, b, a in pairs
            if before.meta(b).dtype != after.meta(a).dtype
        ],
    )


def _listing(kind: str, items: list[str]) -> list[str]:
    """Return `kind` with the items spelled out up to a limit, or nothing where there are none."""
    if not items:
        return []
    rest = len(items) - _NAMES_SHOWN
    shown = ", ".join(items[:_NAMES_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
    return [f"{len(items)} {kind}: {shown}"]
