"""What a command says: tables for people, JSON for programs, and what it is doing meanwhile.

Results go to stdout; progress and errors go to stderr. Colours follow rich, and so `NO_COLOR` and `FORCE_COLOR`.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

_WIDTH = 100  # columns of a table where there is no terminal


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
    """Say on stderr what is being done: beside a spinner on a terminal, as a line elsewhere."""
    if not sys.stderr.isatty():
        note(f"{text} ...")
        yield
        return
    from rich.console import Console
    from rich.text import Text

    with Console(stderr=True).status(Text(text)):
        yield


@contextmanager
def steps() -> Iterator[Callable[[str], None]]:
    """Say on stderr what is being done, step after step: beside one spinner on a terminal, as lines elsewhere.

    Yields:
        What is to be told of each step.
    """
    if not sys.stderr.isatty():
        yield lambda text: note(f"{text} ...")
        return
    from rich.console import Console
    from rich.text import Text

    with Console(stderr=True).status("") as shown:
        yield lambda text: shown.update(Text(text))


@contextmanager
def bar(text: str) -> Iterator[Callable[[int, int], None]]:
    """Say on stderr what is being done and how far it is: a bar on a terminal, a line at the beginning elsewhere.

    Yields:
        What is to be told how much is done, and of how much.
    """
    if not sys.stderr.isatty():
        note(f"{text} ...")
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as drawn:
        task = drawn.add_task(text, total=None)
        yield lambda done, total: drawn.update(task, completed=done, total=total)


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
