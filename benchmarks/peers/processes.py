"""Commands run one after the other, with what each cost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


_LAUNCHER = """
import json, os, subprocess, sys, time
start = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=sys.stderr)
_, status, usage = os.wait4(process.pid, 0)
if status:
    sys.exit(1)
seconds, cpu = time.perf_counter() - start, usage.ru_utime + usage.ru_stime
print(json.dumps({"seconds": seconds, "cpu_seconds": cpu, "peak_bytes": 1024 * usage.ru_maxrss}))
"""
"""A small process that starts the command: Linux counts to a process's peak what it was forked from."""


def measure(command: list[str], limit: float) -> dict[str, Any]:
    """Run a command to its end.

    Args:
        command: The program and its arguments.
        limit: Seconds after which it is given up.

    Returns:
        `seconds` on the clock, `cpu_seconds` of its own and its children, `peak_bytes` of resident memory; or a `note`
        that says why there are none.
    """
    launched = [sys.executable, "-S", "-c", _LAUNCHER, *command]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(launched, cwd=ROOT, env=environment(), start_new_session=True, **pipes) as process:
        try:
            out, said = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # its own session: the launcher and all that it started
            return {"note": f"given up after {limit:.0f} s"}
    if process.returncode:
        return {"note": f"failed: {(said.strip().splitlines() or ['no message'])[-1][:200]}"}
    found: dict[str, Any] = json.loads(out)
    return found


def environment() -> dict[str, str]:
    """Return the environment in which every Python finds this checkout."""
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")]), "HF_HUB_OFFLINE": "1"}


def in_turns(commands: dict[str, list[str]], rounds: int, limit: float) -> dict[str, dict[str, Any]]:
    """Run each command once a round, one after the other, so that other work on the machine hits all alike.

    Returns:
        By name the cheapest of each column; or the note of one that did not end, which is not tried again.
    """
    best: dict[str, dict[str, Any]] = {}
    for _ in range(rounds):
        for name, command in commands.items():
            if "note" in best.get(name, {}):
                continue
            found = measure(command, limit)
            known = best.get(name, found)
            best[name] = found if "note" in found else {key: min(known[key], value) for key, value in found.items()}
    return best
