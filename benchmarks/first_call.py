"""What compiling costs a user: `rlforget diff` with nothing compiled yet, and again, from the code kept on disk."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
START = "import numba, torch, rlforget.cli.app, rlforget.delta.compare"


def seconds_of_calls(before: Path, after: Path, cache: Path) -> dict[str, float]:
    """Time `rlforget diff` of two small checkpoints in processes of their own.

    Args:
        before: A checkpoint folder.
        after: Another.
        cache: A folder that does not exist yet, for the compiled code.

    Returns:
        "start": Python and the imports alone, so that files are in the page cache; "first", "second": the command.
    """
    caches = {"NUMBA_CACHE_DIR": str(cache / "numba"), "TRITON_CACHE_DIR": str(cache / "triton")}
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    environment = os.environ | caches | {"PYTHONPATH": path}
    diff = ["-m", "rlforget", "diff", str(before), str(after)]
    _run(["-c", START], environment)
    return {
        "start": _run(["-c", START], environment),
        "first": _run(diff, environment),
        "second": min(_run(diff, environment) for _ in range(3)),
    }


def _run(arguments: list[str], environment: dict[str, str]) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], env=environment, check=True, capture_output=True)
    return time.perf_counter() - start
