"""What a command says: tables for people, JSON for programs, and what it is doing meanwhile.

Results go to stdout; progress and errors go to stderr. Colours follow rich, and so `NO_COLOR` and `FORCE_COLOR`.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from rlforget.counting import listening

if TYPE_CHECKING:
    from rlforget.cli.screen import Screen

_WIDTH = 100  # columns of a table where there is no terminal
_SECONDS_A_LINE = 10.0


def line(text: str = "") -> None:
    """Write a line to stdout, as it is."""
    typer.echo(text)


def note(text: str) -> None:
    """Write a line about the work itself to stderr."""
    typer.echo(text, err=True)


def error(text: str) -> None:
    """Write a fault to stderr, as one line."""
    from rich.console import Console
    from rich.text import Text

    fault = Text.assemble(("rlforget: ", "bold red"), " ".join(text.split()))
    Console(stderr=True, highlight=False).print(fault, soft_wrap=True)


def written(path: Path, *, dry_run: bool) -> None:
    """Say where the result lies, or would."""
    line(f"would write {path}" if dry_run else f"wrote {path}")


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, title: str = "") -> None:
    """Write a table to stdout: the first column to the left, the others to the right."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(title=title or None, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for position, name in enumerate(columns):
        drawn.add_column(name, justify="right" if position else "left", overflow="fold", no_wrap=position > 0)
    for row in rows:
        drawn.add_row(*map(Text, row))
    Console(width=None if sys.stdout.isatty() else _WIDTH, highlight=False).print(drawn)


def json_object(value: Any) -> None:
    """Write a value to stdout as JSON. Paths become strings; NaN and infinities, which JSON lacks, become null."""
    typer.echo(json_text(value))


def json_text(value: Any) -> str:
    """Return a value as JSON; see `json_object`."""
    return json.dumps(_plain(value), indent=2, allow_nan=False)


@contextmanager
def step(text: str) -> Iterator[None]:
    """Say on stderr what is being done, and how far what is counted on the way is; see `rlforget.counting`.

    On a terminal that is a bar with its rate and the time that remains, elsewhere a line at the beginning and one now
    and then.
    """
    with _shown() as work, listening(work.counted):
        work.begin(text)
        yield


@contextmanager
def steps() -> Iterator[Callable[[str], None]]:
    """Say on stderr what is being done, step after step, as `step` does.

    Yields:
        What is to be told of each step.
    """
    with _shown() as work, listening(work.counted):
        yield work.begin


@contextmanager
def bar(text: str, *, of: str = "coordinates") -> Iterator[Callable[[int, int], None]]:
    """Say on stderr what is being done and how far it is, as `step` does.

    Args:
        text: What is being done.
        of: What is counted.

    Yields:
        What is to be told how many are done, and of how many.
    """
    with _shown() as work:
        work.begin(text)
        yield lambda done, total: work.counted(of, done, total)


class _Lines:
    """Plain lines, for what is no terminal: one for each step, and how far it is every `_SECONDS_A_LINE` seconds."""

    def __init__(self) -> None:
        self._text, self._since, self._told = "", 0.0, 0.0

    def begin(self, text: str) -> None:
        """Tell of a step."""
        note(f"{text} ...")
        self._text, self._since, self._told = text, time.monotonic(), time.monotonic()

    def counted(self, what: str, done: int, total: int) -> None:
        """Tell how far it is, where a while has gone by."""
        now = time.monotonic()
        if now - self._told >= _SECONDS_A_LINE:
            self._told = now
            note(f"{self._text}: {done:,} of {total:,} {what}, {now - self._since:.0f} s")


@contextmanager
def _shown() -> Iterator[_Lines | Screen]:
    if not sys.stderr.isatty():
        yield _Lines()
        return
    from rlforget.cli.screen import Screen

    with Screen() as screen:
        yield screen


def percent(share: float) -> str:
    """Write a share of 1 with three significant digits, e.g. `2%`, `0.0125%`."""
    return f"{100 * share:.3g}%"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    return value
