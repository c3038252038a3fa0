"""Runs each peer in a process of its own, with the Python that has it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.delta_files.one_peer import NO_PEER

OURS = "rlforget"
ROOT = Path(__file__).parents[2]


def run_peer(name: str, arguments: list[str], python: str, limit: float) -> dict[str, Any]:
    """Measure one peer.

    Args:
        name: Its name in `peers.PEERS`.
        arguments: The folders before and after and one to work in, or `--special`.
        python: The Python that has it.
        limit: Seconds after which it is given up.

    Returns:
        What `one_peer.py` prints: `version` and `measured`; or a `note` that says why there is none.
    """
    python = sys.executable if name == OURS else python or sys.executable
    command = [python, "-m", "benchmarks.delta_files.one_peer", name, *arguments]
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])},
            capture_output=True,
            text=True,
            timeout=limit,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"note": f"given up after {limit:.0f} s"}
    if done.returncode == NO_PEER:
        return {"note": "not installed"}
    if done.returncode:
        return {"note": f"failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}"}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
