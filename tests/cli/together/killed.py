"""One of several processes that run a command, of which one is killed at a chosen call.

    torchrun ... -m tests.cli.together.killed '{"victim": 1, "on": 0, "at": "MODULE.FUNCTION", "call": 2}' ARGUMENTS

When the rank `on` is about to make that call, counted from 1, of the function that goes by that name, the victim gets
SIGKILL; where that is another rank, `on` stays in the call until it is stopped, a minute at most.
"""

from __future__ import annotations

import json
import os
import pkgutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any
from unittest import mock

from rlforget.__main__ import main
from tests.cli.together.program import small_ranges

RANK = int(os.environ["RANK"])


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def when(marker: Path) -> None:
    while not marker.exists():
        time.sleep(0.01)
    die()


def killing(plan: dict[str, Any], marker: Path) -> Any:
    """Patch the function of the plan where it is this rank's turn."""
    work = pkgutil.resolve_name(plan["at"])
    calls = 0

    def counted(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == plan["call"]:
            if plan["victim"] == RANK:
                die()
            marker.touch()
            time.sleep(60)
        return work(*arguments, **named)

    return mock.patch(plan["at"], counted)


if __name__ == "__main__":
    plan = json.loads(sys.argv[1])
    marker = Path(plan["marker"])
    if plan["victim"] == RANK != plan["on"]:
        threading.Thread(target=when, args=[marker], daemon=True).start()
    sys.argv[1:] = sys.argv[2:]
    with small_ranges():
        if plan["on"] == RANK:
            with killing(plan, marker):
                main()
        else:
            main()
