"""What a command says of its work: bars and colours on a terminal, plain lines elsewhere, JSON alone on stdout."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlforget.cli import output
from rlforget.cli.screen import short
from rlforget.counting import counted
from tests.cli.conftest import Checkpoints

COLOUR = re.compile(r"\x1b\[[0-9;]*(?:3|4|9|10)[0-7](?:;[0-9;]*)?m")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def on_a_terminal(*arguments: object, **environment: str) -> tuple[int, str, str]:
    """Run the program with stderr on a pseudo-terminal: its exit code, what stdout got, and what the terminal did."""
    ours, theirs = pty.openpty()
    plain = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    command = [sys.executable, "-m", "rlforget", *map(str, arguments)]
    env = plain | {"TERM": "xterm-256color", "COLUMNS": "160"} | environment
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, stdin=theirs, env=env) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                part = os.read(ours, 1 << 16)
            except OSError:  # the other end is closed
                break
            shown += part
        assert process.stdout is not None
        out = process.stdout.read().decode()
    os.close(ours)
    return process.returncode, out, shown.decode(errors="replace")


def test_a_terminal_gets_a_bar_with_rate_and_remaining_time_and_stdout_json_alone(checkpoints: Checkpoints) -> None:
    code, out, shown = on_a_terminal("diff", checkpoints.base, checkpoints.tuned, "--json")
    assert code == 0
    assert json.loads(out)["total"]["changed"] > 0
    assert "\x1b" not in out
    assert re.search(r"comparing .* coordinates/s, 0:00:00 left", shown, re.DOTALL)
    assert COLOUR.search(shown)


@pytest.mark.parametrize("silent", [False, True])
def test_colours_are_for_terminals_that_want_them(silent: bool, tmp_path: Path) -> None:
    code, out, shown = on_a_terminal("report", tmp_path, **({"NO_COLOR": "1"} if silent else {}))
    assert (code, out) == (1, "")
    assert "rlforget: " in re.sub(r"\x1b\[[0-9;]*m", "", shown)
    assert bool(COLOUR.search(shown)) is not silent


def test_no_terminal_gets_plain_lines(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rlforget", "report", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "\x1b" not in done.stdout + done.stderr
    assert done.stderr.startswith("rlforget: ")


def test_lines_come_at_the_beginning_and_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with output.step("working"):
        for _ in counted("things", range(2000)):
            now[0] += 0.011
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines() == [
        "working ...",
        "working: 910 of 2,000 things, 10 s",
        "working: 1,820 of 2,000 things, 20 s",
    ]


def test_steps_are_shown_one_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    with output.steps() as say:
        for name in ("one", "two [b]"):
            say(name)
            for _ in counted("things", range(3)):
                time.sleep(0.11)  # longer than the screen waits between two pictures
    shown = screen.getvalue()
    assert all(text in shown for text in ("one", "two [b]", "things/s", " left"))


@pytest.mark.parametrize(
    ("count", "written"),
    [(0.004, "0.00"), (0.52, "0.52"), (9.94, "9.9"), (17.2, "17"), (999, "999"), (1300, "1.3k"), (2e12, "2.0T")],
)
def test_rates_are_short(count: float, written: str) -> None:
    assert short(count) == written
