"""Reading a pickle that somebody else's format cannot do without: as plain data, by a list of known names.

A pickle is a program: it names what is to be called. Here a name that is not in the list ends the reading, and what is
in the list stands for itself: no class or function of the pickle's choosing is ever imported, made or called.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from typing import Any, BinaryIO

from rlforget.errors import NotACheckpointError


class Record:
    """What stands in a pickle for an object: what it was made of, and nothing that it could do.

    Attributes:
        arguments: What its class was called with.
        state: What was put into it afterwards.
    """

    def __new__(cls, *arguments: Any) -> Record:
        """Keep the arguments."""
        record = object.__new__(cls)
        record.arguments, record.state = arguments, None
        return record

    arguments: tuple[Any, ...]
    state: Any

    def __setstate__(self, state: Any) -> None:
        """Keep the state."""
        self.state = state


def read_pickle(file: BinaryIO, what: str, known: Mapping[tuple[str, str], Any]) -> Any:
    """Return what a pickle holds; what it keeps beside itself (persistent ids) stands as it is named.

    Args:
        file: The pickle.
        what: What it is, for the error.
        known: {(module, name): what stands for it}: `Record`, or values that nothing can be done with.

    Raises:
        NotACheckpointError: It names anything else, or is damaged.
    """
    try:
        return _Reader(file, known).load()
    except _UnknownName as fault:
        fix = "If you trust whoever wrote it, load it with torch and save the model as safetensors."
        expected = "a pickle of names that torch.distributed.checkpoint writes"
        raise NotACheckpointError(what, expected=expected, found=str(fault), fix=fix) from None
    except Exception as fault:  # bytes at random may raise nearly anything
        found, fix = f"{type(fault).__name__}: {fault}", "Fetch or save the checkpoint again."
        raise NotACheckpointError(what, expected="a whole pickle", found=found, fix=fix) from fault


class _UnknownName(Exception):
    pass


class _Reader(pickle.Unpickler):
    def __init__(self, file: BinaryIO, known: Mapping[tuple[str, str], Any]) -> None:
        super().__init__(file)
        self._known = known

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a name, without importing anything."""
        if (module, name) not in self._known:
            raise _UnknownName(f"{module}.{name}")
        return self._known[module, name]

    def persistent_load(self, key: Any) -> Any:
        """Return the key itself."""
        return key
