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


@dataclass(frozen=True)
class Matching:
    """How the storages of two sets of weights go together.

    Attributes:
        pairs: Those with one shape and dtype on both sides, in the order of `before`. `Pair.name` is the canonical name
            in `before` where that is known on both sides.
        resized: Pairs whose shapes differ.
        retyped: Pairs whose dtypes alone differ.
        missing: Canonical names in `before` alone.
        extra: Canonical names in `after` alone.
    """

    pairs: list[Pair]
    resized: list[Pair]
    retyped: list[Pair]
    missing: list[str]
    extra: list[str]


def match(before: Layout, after: Layout, renamed: Mapping[str, str] | None = None) -> Matching:
    """Match the storages of two sets of weights by name.

    Two storages match when any name of the one is a name of the other, so that a tied tensor may be canonical under
    different names, or be dropped under one of them. A storage that is tied on one side only appears once for each
    storage that it meets on the other.

    Args:
        before: One set of weights.
        after: The other.
        renamed: {name in `before`: its name in `after`}, for those that are not called the same.

    Raises:
        UnknownNameError: `renamed` has a name that is not there.
    """
    renamed = renamed or {}
    taken = set()
    for old, new in renamed.items():
        before.canonical(old)
        taken.add(after.canonical(new))
    names: dict[tuple[str, str], str] = {}
    for name in before.all_names():
        new = renamed.get(name, name)
        if new in after and (name in renamed or after.canonical(new) not in taken):
            names.setdefault((before.canonical(name), after.canonical(new)), name)
    pairs: list[Pair] = []
    resized: list[Pair] = []
    retyped: list[Pair] = []
    for (old, new), name in names.items():
        was, now = before.meta(old), after.meta(new)
        kind = pairs if was == now else retyped if was.shape == now.shape else resized
        kind.append(Pair(name, old, new))
    met_before, met_after = {old for old, _ in names}, {new for _, new in names}
    return Matching(
        pairs,
        resized,
        retyped,
        missing=[name for name in before.names() if name not in met_before],
        extra=[name for name in after.names() if name not in met_after],
    )


def pair_up(before: Layout, after: Layout) -> list[Pair]:
    """Match the storages of two sets of weights by name, as `match` does, and check that they fit.

    Raises:
        LayoutError: Tensors are missing, extra, resized or retyped; the message lists them by name.
    """
    found = match(before, after)
    shapes = [f"{n} {list(before.meta(b).shape)} -> {list(after.meta(a).shape)}" for n, b, a in found.resized]
    dtypes = [f"{n} {before.meta(b).dtype} -> {after.meta(a).dtype}" for n, b, a in found.retyped]
    kinds = {"missing": found.missing, "extra": found.extra, "resized": shapes, "retyped": dtypes}
    faults = [_listing(kind, items) for kind, items in kinds.items() if items]
    if faults:
        raise LayoutError(
            after.description,
            expected=f"the names, shapes and dtypes of {before.description}",
            found="; ".join(faults),
            fix="Give two checkpoints of one architecture, in one dtype.",
        )
    return found.pairs


def check_layout(before: Layout, after: Layout) -> None:
    """Check that two sets of weights have the same tensors, by name, shape and dtype.

    Raises:
        LayoutError: They have not; the message lists what is missing, extra, resized and retyped.
    """
    pair_up(before, after)


def merged_aliases(pairs: list[Pair], before: Layout, after: Layout) -> dict[str, str]:
    """Return every further name of the paired storages, with the pair's name it stands for.

    A name that stands for two different pairs (tied on one side, untied on the other) is left out, and so is one of a
    storage that is in no pair.
    """
    by_before: dict[str, set[str]] = {}
    by_after: dict[str, set[str]] = {}
    for pair in pairs:
        by_before.setdefault(pair.before, set()).add(pair.name)
        by_after.setdefault(pair.after, set()).add(pair.name)
    aliases = {}
    for name in dict.fromkeys([*before.all_names(), *after.all_names()]):
        known = by_before.get(before.canonical(name)) if name in before else by_after.get(after.canonical(name))
        owners = known or set()
        if name in before and name in after:
            owners = owners & by_after.get(after.canonical(name), set())
        if len(owners) == 1 and name not in owners:
            aliases[name] = next(iter(owners))
    return aliases


def _listing(kind: str, items: list[str]) -> str:
    """Return `kind` with the items spelled out up to a limit."""
    rest = len(items) - _NAMES_SHOWN
    shown = ", ".join(items[:_NAMES_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
    return f"{len(items)} {kind}: {shown}"
