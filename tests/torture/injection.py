"""Processes whose disk fails, or that are killed, at the N-th call that writes: real ones, with real system calls.

`inject.c` is compiled when it is first needed and loaded into a server process, which imports the package once. For
every job it forks, and it is the fork that is killed or meets the errors; so three hundred of them take a minute.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

OFF, COUNT, KILL, TEAR, FAIL, FAIL_ONCE, SHORT, NO_RENAMEAT2 = range(8)


@dataclass(frozen=True)
class Fault:
    """What goes wrong, and at which call that writes.

    Attributes:
        kind: Its name, for reports.
        mode: One of the modes of `inject.c`.
        error: The error that a call returns, where it fails.
    """

    kind: str
    mode: int
    error: int = 0


KILLED, TORN = Fault("killed", KILL), Fault("torn", TEAR)
FULL, FULL_ONCE = Fault("ENOSPC", FAIL, errno.ENOSPC), Fault("ENOSPC once", FAIL_ONCE, errno.ENOSPC)
BROKEN, BROKEN_ONCE = Fault("EIO", FAIL, errno.EIO), Fault("EIO once", FAIL_ONCE, errno.EIO)
READ_ONLY = Fault("EROFS", FAIL, errno.EROFS)
FAULTS = (KILLED, TORN, FULL, FULL_ONCE, BROKEN, BROKEN_ONCE, READ_ONLY)

COUNTED, SHORT_WRITES, OLD_SYSTEM = Fault("none", COUNT), Fault("short", SHORT), Fault("ENOSYS", NO_RENAMEAT2)


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        code: Its exit code; the number of the signal, negative, that killed it.
        calls: How many calls that write it made.
        call: Name of the one at which it met the fault.
        text: What it printed.
        trace: The name of each call, and the path that it was made on.
    """

    code: int
    calls: int
    call: str
    text: str
    trace: list[str] = field(default_factory=list, repr=False)

    @property
    def killed(self) -> bool:
        return self.code == -9

    @property
    def writes(self) -> bool:
        """Whether the call that met the fault writes bytes, and so may write only some of them."""
        return any(word in self.call for word in ("write", "sendfile", "copy_file"))


def compiled(folder: Path) -> Path | None:
    """Compile the library into `folder`; None where there is no compiler, or no Linux."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        return None
    library = folder / "inject.so"
    command = [compiler, "-O1", "-shared", "-fPIC", "-o", str(library), str(HERE / "inject.c"), "-ldl"]
    subprocess.run(command, check=True, capture_output=True)
    return library


class Server:
    """Runs jobs, each in a process of its own, with a fault or without."""

    def __init__(self, library: Path) -> None:
        self.library = library
        environment = {**os.environ, "LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.torture.server", str(library)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment,
        )

    def run(
        self,
        job: str,
        *arguments: Any,
        fault: Fault = COUNTED,
        at: int = 0,
        folder: Path | str = "/",
        fork: bool = True,
    ) -> Outcome:
        """Run a function of `jobs.py` by its name.

        Args:
            job: The function's name.
            arguments: What it takes; paths become strings.
            fault: What goes wrong.
            at: At which call that writes, from 0.
            folder: Only calls on what lies in this folder count.
            fork: Without, the server does it itself, so that the forks find imported and compiled what it needs.
        """
        request = {
            "job": job,
            "arguments": arguments,
            "mode": fault.mode,
            "at": at,
            "error": fault.error,
            "folder": str(folder),
            "fork": fork,
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request, default=str) + "\n")
        self._process.stdin.flush()
        return Outcome(**json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        self._process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@contextmanager
def started(folder: Path) -> Iterator[Server]:
    """A server, with its library in `folder`; skips the test where there can be none."""
    library = compiled(folder)
    if library is None:
        pytest.skip("faults are injected by a library that needs Linux and a C compiler")
    with Server(library) as running:
        yield running
