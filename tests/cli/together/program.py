"""One of several processes: runs commands one after another, as `rlforget` would each, and says what came of them.

    torchrun ... -m tests.cli.together.program FOLDER

FOLDER/jobs.json lists them, each as the arguments, and a rank whose disk fails where there is one. Ranges are so small
that tensors of a few thousand coordinates are split.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from tests.cli.conftest import run

SMALL = 1024
RANGES = [
    *(f"rlforget.delta.file.{module}.PIECE" for module in ("line", "table", "writer")),
    "rlforget.delta.scan.PIECE",
    "rlforget.history.verification.PIECE",
    "rlforget.weights.saving.CHUNK",
]


@contextmanager
def small_ranges() -> Iterator[None]:
    with ExitStack() as patched:
        for name in RANGES:
            patched.enter_context(mock.patch(name, SMALL))
        patched.enter_context(mock.patch("rlforget.delta.file.writer._SMALL", 0))  # large files are made in another way
        yield


def outcome(arguments: list[str], failing: int | None = None) -> dict[str, Any]:
    """Run a command; on the rank `failing` every read of weights fails."""
    with small_ranges(), ExitStack() as held:
        if failing is not None and str(failing) == os.environ.get("RANK"):
            fault = OSError(5, "Input/output error")
            held.enter_context(mock.patch("rlforget.weights.checkpoint.read_fully", side_effect=fault))
        return vars(run(*arguments))


def main(folder: Path) -> None:
    jobs = json.loads((folder / "jobs.json").read_text())
    found = [outcome(**job) for job in jobs]
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
