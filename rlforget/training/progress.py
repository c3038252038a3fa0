"""Progress of long work: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import importlib.util
import sys
import time
from typing import Any, Protocol, TextIO

_LINES = 10  # lines a task, where there is no terminal


class Progress(Protocol):
    """What long work tells about itself, one task at a time."""

    def start(self, title: str, total: int) -> None:
        """Begin a task of `total` steps."""

    def advance(self, done: int, figures: dict[str, float]) -> None:
        """Report that `done` steps are behind, with the figures of the last one."""

    def stop(self) -> None:
        """End the task, finished or not."""


class Silent:
    """Tells nothing."""

    def start(self, title: str, total: int) -> None:
        """Do nothing."""

    def advance(self, done: int, figures: dict[str, float]) -> None:
        """Do nothing."""

    def stop(self) -> None:
        """Do nothing."""


class Lines:
    """Writes about ten lines a task, e.g. into the log of a batch system."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._title, self._total, self._told, self._since = "", 1, 0, 0.0

    def start(self, title: str, total: int) -> None:
        """Remember the task."""
        self._title, self._total, self._told, self._since = title, max(1, total), 0, time.monotonic()

    def advance(self, done: int, figures: dict[str, float]) -> None:
        """Write a line, where a tenth more is done."""
        tenth = done * _LINES // self._total
        if tenth > self._told:
            self._told = tenth
            seconds = time.monotonic() - self._since
            self._stream.write(f"{self._title}: {done}/{self._total}{_shown(figures)}, {seconds:.0f} s\n")
            self._stream.flush()

    def stop(self) -> None:
        """Do nothing: every line is written already."""


class Bar:
    """A progress bar, drawn by rich."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._task: Any = None
        self._since = 0.0

    def start(self, title: str, total: int) -> None:
        """Draw the bar."""
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}", markup=False),
            TextColumn("{task.fields[rate]}", markup=False),
            TimeRemainingColumn(elapsed_when_finished=True),
        )
        self._bar = Progress(*columns, console=Console(stderr=True))
        self._task = self._bar.add_task(title, total=total, figures="", rate="")
        self._since = time.monotonic()
        self._bar.start()

    def advance(self, done: int, figures: dict[str, float]) -> None:
        """Move the bar."""
        rate = f"{done / max(1e-9, time.monotonic() - self._since):.1f}/s"
        self._bar.update(self._task, completed=done, figures=_shown(figures).removeprefix(", "), rate=rate)

    def stop(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.stop()


def choose(progress: bool | Progress) -> Progress:
    """Return the progress that is asked for: True is a bar on a terminal and lines elsewhere, False is silence."""
    if not isinstance(progress, bool):
        return progress
    if not progress:
        return Silent()
    drawable = sys.stderr.isatty() and importlib.util.find_spec("rich") is not None
    return Bar() if drawable else Lines()


def _shown(figures: dict[str, float]) -> str:
    return "".join(f", {name} {value:.3f}" for name, value in figures.items())
