"""The JSON-lines log of a run."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from rlforget.errors import OutputError


class Log(Protocol):
    """Where events are written."""

    def __call__(self, event: str, **fields: Any) -> None:
        """Write one event."""


def silent(event: str, **fields: Any) -> None:
    """Write nothing."""


class JsonLinesLog:
    """Appends one JSON object an event to a file: `time` in seconds since 1970, `event`, and the event's own fields.

    A line that a killed process left unfinished is cut off when the file is opened again.
    """

    def __init__(self, path: Path) -> None:
        try:
            _cut_torn_line(path)
            self._file = path.open("a", encoding="utf-8")
        except OSError as fault:
            raise OutputError(
                str(path), expected="a file that can be written", found=str(fault), fix="Choose another output folder."
            ) from fault

    def __call__(self, event: str, **fields: Any) -> None:
        """Write one event; it is in the hands of the operating system when this returns."""
        self._file.write(json.dumps({"time": round(time.time(), 3), "event": event, **fields}) + "\n")
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def _cut_torn_line(path: Path) -> None:
    """Cut off a last line that has no end and is no JSON; end one that is."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        held = file.read()
        whole = held.rfind(b"\n") + 1
        if whole == len(held):
            return
        try:
            json.loads(held[whole:])
        except ValueError:
            file.truncate(whole)
        else:
            file.write(b"\n")
