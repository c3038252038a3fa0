"""`torch.compile` of a peer, with what became of it: compiled whole, broken into several graphs, or failed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

RECOMPILE_LIMIT = 64  # dtypes and sizes of one operator's cases; beyond it torch would run the code uncompiled

_notes: dict[Callable[..., object], str] = {}


class Compiled:
    """A function under `torch.compile` as a user gets it; cases with the same function share what is compiled.

    Args:
        function: Plain torch.
        arguments: What to call it with; asked before every call.

    Attributes:
        note: After the first call, how often the graph broke, and on what; empty if it did not.
    """

    def __init__(self, function: Callable[..., object], arguments: Callable[[], tuple[Any, ...]]) -> None:
        self.note = ""
        self._arguments = arguments
        self._function = function
        self._started = False

    def __call__(self) -> object:
        """Run it, compiled at the first call for these sizes and dtypes."""
        if not self._started:
            self._start()
        return _compiled(self._function)(*self._arguments())

    def _start(self) -> None:
        from torch._dynamo.utils import counters

        self._started = True
        counters["graph_break"].clear()
        _compiled(self._function)(*self._arguments())
        breaks = counters["graph_break"]
        if breaks:
            reasons = sorted({reason.splitlines()[0].strip().lower() for reason in breaks})
            count = sum(breaks.values())
            _notes[self._function] = f"{count} graph break{'s' * (count > 1)} ({', '.join(reasons)})"
        self.note = _notes.get(self._function, "")


@functools.cache
def _compiled(function: Callable[..., object]) -> Callable[..., object]:
    torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT
    return torch.compile(function)


def torch_peers(
    function: Callable[..., object], arguments: Callable[[], tuple[Any, ...]]
) -> dict[str, Callable[[], object]]:
    """Return `function` as the peer "torch", and compiled as the peer "torch.compile".

    Args:
        function: Plain torch, as a user would write it.
        arguments: What to call it with; asked before every call, so that a call in place can take turns.
    """
    return {"torch": lambda: function(*arguments()), "torch.compile": Compiled(function, arguments)}
