"""How far long work is, on a terminal: one bar with its rate and the time that remains, which goes when it is done."""

from __future__ import annotations

import time
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.text import Text


class _Elapsed(ProgressColumn):
    """The time since the step began, whatever is counted in it."""

    def render(self, task: Task) -> Text:
        """Write it."""
        return Text(str(timedelta(seconds=int(time.monotonic() - task.fields["begun"]))))


class Screen(Progress):
    """The bar; to be entered before anything is told."""

    def __init__(self) -> None:
        plain = (TextColumn(f"{{task.{name}}}", markup=False) for name in ("description", "fields[pace]"))
        super().__init__(
            SpinnerColumn(), next(plain), BarColumn(24), _Elapsed(), next(plain), console=Console(stderr=True)
        )
        self.live.transient = True
        self._what, self._since = "", 0.0

    def begin(self, text: str) -> None:
        """Show a step, of which nothing is counted yet."""
        for task in self.task_ids:
            self.remove_task(task)
        self._what = ""
        self.add_task(text, total=None, pace="", begun=time.monotonic())

    def counted(self, what: str, done: int, total: int) -> None:
        """Move the bar; the rate and the time that remains are of what is counted now."""
        now, pace = time.monotonic(), ""
        if what != self._what or done == 0:
            self._what, self._since = what, now
        if done:
            rate = done / max(1e-9, now - self._since)
            pace = f"{short(rate)} {what}/s, {timedelta(seconds=round((total - done) / rate))} left"
        self.update(self.task_ids[-1], completed=done, total=total, pace=pace)


def short(count: float) -> str:
    """Write a number with two or three digits: `0.52`, `17`, `940`, `1.3k`, `12M`."""
    power = min(4, sum(count >= 1000**one for one in range(1, 5)))
    count /= 1000**power
    return f"{count:.{0 if count >= 10 else 1 if count >= 1 else 2}f}{('', 'k', 'M', 'G', 'T')[power]}"
