"""`torch.compile` of a peer, with what became of it: compiled whole, broken into several graphs, or failed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

RECOMPILE_LIMIT = 64  # dtypes and sizes of one operator's cases; beyond it torch would run the code uncompiled

_notes: dict[Hashable, str] = {}
_given_up: dict[Hashable, str] = {}


class Compiled:
    """What runs under `torch.compile`, and is compiled at its first call for its sizes and dtypes.

    Args:
        run: Calls compiled functions.
        of: What is compiled. Cases with the same share it; one that could not be compiled in time is not tried again.

    Attributes:
        note: After the first call, how often the graph broke, and on what; empty if it did not.
    """

    def __init__(self, run: Callable[[], object], of: Hashable = None) -> None:
        self.note = ""
        self._run = run
        self._of = of or run
        self._started = False

    def __call__(self) -> object:
        """Run it."""
        if not self._started:
            self.start()
        return self._run()

    def start(self, limit: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        """Compile it, inside `limit`.

        Raises:
            TimeoutError: The limit ended the compilation, now or in another case.
        """
        from torch._dynamo.utils import counters

        if self._of in _given_up:
            raise TimeoutError(_given_up[self._of])
        self._started = True
        counters["graph_break"].clear()
        try:
            with limit():
                self._run()
        except TimeoutError as fault:
            _given_up[self._of] = str(fault)
            raise
        breaks = counters["graph_break"]
        if breaks:
            reasons = sorted({reason.splitlines()[0].strip().lower() for reason in breaks})
            count = sum(breaks.values())
            _notes[self._of] = f"{count} graph break{'s' * (count > 1)} ({', '.join(reasons)})"
        self.note = _notes.get(self._of, "")


@functools.cache
def _compiled(function: Callable[..., object], dynamic: bool | None = None) -> Callable[..., object]:
    torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT
    return torch.compile(function, dynamic=dynamic)


def compiled_peer(function: Callable[..., object], arguments: Callable[[], tuple[Any, ...]]) -> Compiled:
    """Return `function`, compiled with torch's defaults, as a peer; see `torch_peers`."""
    return Compiled(lambda: _compiled(function)(*arguments()), function)


def torch_peers(
    function: Callable[..., object], arguments: Callable[[], tuple[Any, ...]]
) -> dict[str, Callable[[], object]]:
    """Return `function` as the peer "torch", and compiled with torch's defaults as the peer "torch.compile".

    Args:
        function: Plain torch, as a user would write it.
        arguments: What to call it with; asked before every call, so that a call in place can take turns.
    """
    return {
        "torch": lambda: function(*arguments()),
        "torch.compile": compiled_peer(function, arguments),
    }


def torch_peers_of_each(
    functions: Sequence[Callable[..., object]], calls: Callable[[], Iterable[tuple[Any, ...]]]
) -> dict[str, Callable[[], object]]:
    """Return functions, called for each tensor of a list, as the peer "torch", and compiled as "torch.compile".

    Each is compiled by itself, for any length: the loop around them would be unrolled, and compiled for minutes.

    Args:
        functions: Plain torch, for one tensor, as a user would write it.
        calls: What to call each with, tensor by tensor; asked before every run.
    """

    def run(compiled: Sequence[Callable[..., object]]) -> list[object]:
        return [function(*arguments) for arguments in calls() for function in compiled]

    return {
        "torch": lambda: run(functions),
        "torch.compile": Compiled(lambda: run([_compiled(one, dynamic=True) for one in functions]), tuple(functions)),
    }
