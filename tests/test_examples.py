"""Every example runs as a user runs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.checkpoint_pair import write_pair

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_sweep(tmp_path: Path) -> None:
    write_pair(tmp_path)
    pair = [str(tmp_path / "checkpoints" / name) for name in ("math", "writing")]
    domains = ["--restore", "math", "--protect", "writing"]
    sizes = ["--samples", "16", "--prompts", "16"]
    command = [sys.executable, str(EXAMPLES / "sweep.py"), *pair, *domains, *sizes]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 7
    assert "2.0% of all" in done.stdout


def test_no_example_is_left_out() -> None:
    elsewhere = {"read_delta.py"}  # tests/delta/file/test_example.py
    assert {path.name for path in EXAMPLES.glob("*.py")} == {"sweep.py", *elsewhere}
