"""Whole tensors of weights that are spread over ranks, range by range, for what one rank writes for all.

The first rank reads as if it had all of them; the others stand by and hand over what they hold of a range. Memory is
that of a few ranges.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import Any, TypeVar

import torch
from torch import distributed

from rlforget.errors import RlforgetError, WorldError
from rlforget.weights.buffers import buffer
from rlforget.weights.ranks import first_hears, first_says, is_first
from rlforget.weights.source import Weights
from rlforget_kernels.common.bits import as_bits, bits_dtype

Value = TypeVar("Value")

_NOTHING: Any = ("", None)  # what those say that do not speak

_Part = tuple[int, torch.Tensor]
"""Where bits begin in the range that was asked for, and the bits."""


def first_reads(weights: Weights, work: Callable[[Weights], Value]) -> Value:
    """Let the first rank do something with whole weights, and return what it made on all ranks, which all call this.

    Args:
        weights: Weights that are spread over the ranks.
        work: Takes them as whole ones, whose ranges can be read by `bits`; called on the first rank alone.

    Raises:
        RlforgetError: What the first rank met, on all of them.
        WorldError: It met something else, or a rank is gone.
    """
    if not is_first():
        found: Value = _stand_by(weights)
        return found
    try:
        made = work(GatheredWeights(weights))
    except BaseException as fault:
        first_says(("fault", _for_others(fault)))
        raise
    first_says(("made", made))
    return made


class GatheredWeights(Weights):
    """What the first rank sees of weights that are spread over ranks: whole tensors, asked for range by range.

    Args:
        weights: The weights, on this rank.
    """

    def __init__(self, weights: Weights) -> None:
        metas = {name: weights.meta(name) for name in weights.names()}
        super().__init__(weights.description, metas, weights.aliases)
        self._here = weights
        self._asking = Lock()
        # Threads have a device each, and NCCL takes the one of the thread that calls it.
        self._device = torch.cuda.current_device() if distributed.get_backend() == "nccl" else None

    def tensor(self, name: str) -> torch.Tensor:
        """Return a whole tensor, in memory of its own; aliases are accepted."""
        meta = self.meta(name)
        return self.bits(name).clone().view(meta.dtype).view(meta.shape)

    def bits(self, name: str, start: int = 0, stop: int | None = None, out: torch.Tensor | None = None) -> torch.Tensor:
        """Ask all ranks for the bits of a range; see `Weights.bits`.

        Raises:
            WorldError: A rank is gone.
        """
        name, meta = self.canonical(name), self.meta(name)
        stop = meta.numel if stop is None else stop
        if out is None:
            out = buffer(stop - start, bits_dtype(meta.dtype))
        with self._asking:
            if self._device is not None:
                torch.cuda.set_device(self._device)
            for part in _handed_over(self._here, name, start, stop):
                for first, bits in part:
                    out[first : first + bits.numel()] = bits
        return out


def _stand_by(weights: Weights) -> Any:
    """Hand over ranges until the first rank is done; return what it made."""
    while True:
        kind, what = first_says(_NOTHING)
        if kind == "made":
            return what
        if kind == "fault":
            kind_of_fault, what, *said = what
            raise kind_of_fault(what, **dict(zip(("expected", "found", "fix"), said, strict=True)))
        first_hears(_parts(weights, *what))


def _for_others(fault: BaseException) -> tuple[type[RlforgetError], str, str, str, str]:
    """Return what makes the same named fault on the other ranks."""
    if isinstance(fault, RlforgetError):
        return type(fault), fault.what, fault.expected, fault.found, fault.fix
    found = f"{type(fault).__name__}: {fault}"
    return WorldError, "the first rank", "it to go on", found, "Mend what it says."


def _handed_over(weights: Weights, name: str, start: int, stop: int) -> list[list[_Part]]:
    first_says(("range", (name, start, stop)))
    return first_hears(_parts(weights, name, start, stop))


def _parts(weights: Weights, name: str, start: int, stop: int) -> list[_Part]:
    """Return what this rank holds, and counts, of a range."""
    assert weights.sharding is not None
    if not weights.counted_here(name):
        return []
    found, bits = [], as_bits(weights.tensor(name))
    for here, there in weights.sharding.boxes[name].runs(start, stop):
        found.append((there.start - start, bits[here].cpu().clone()))
    return found
