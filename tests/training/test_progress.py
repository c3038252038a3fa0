from __future__ import annotations

import io
import sys

import pytest

from rlforget.training.progress import Bar, Lines, Silent, choose
from tests.training.toy import Quiet


@pytest.mark.parametrize(("total", "lines"), [(1, 1), (3, 3), (10, 10), (300, 10), (0, 0)])
def test_lines_are_about_ten_a_task(total: int, lines: int) -> None:
    stream = io.StringIO()
    progress = Lines(stream)
    for _ in range(2):
        progress.start("math (grpo)", total)
        for step in range(1, total + 1):
            progress.advance(step, {"reward": 0.25, "loss": -1.0})
        progress.stop()
    written = stream.getvalue().splitlines()
    assert len(written) == 2 * lines
    assert all(line.startswith("math (grpo): ") and ", reward 0.250, loss -1.000, " in line for line in written)
    assert not written or f"{total}/{total}" in written[-1]


def test_a_bar_is_for_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    assert isinstance(choose(False), Silent)
    mine = Quiet()
    assert choose(mine) is mine
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert isinstance(choose(True), Lines)
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert isinstance(choose(True), Bar)


def test_a_bar_shows_the_steps_and_the_figures(capsys: pytest.CaptureFixture[str]) -> None:
    bar = Bar()
    bar.start("math (grpo)", 4)
    bar.advance(4, {"reward": 0.5})
    bar.stop()
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "math (grpo)" in shown.err
    assert "4/4" in shown.err
    assert "reward 0.500" in shown.err
