"""A process for programs that nobody has read: no network, no writing, no other processes, little time and memory.

What a process may do is told to the Linux kernel by a filter of system calls (seccomp), which needs no privileges and
cannot be taken off again; see `confined`. Files can be read, which leaks nothing without a network.
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import subprocess
import sys
import tempfile
from pathlib import Path

from rlforget.domains.rewards.confined import READY
from rlforget.errors import SandboxError

_CHILD = Path(__file__).with_name("confined.py")
_START = 5.0  # seconds that the interpreter may take to start on a busy machine


def run(program: str, tests: list[str], *, seconds: float, memory: int) -> list[bool]:
    """Run a program and then tests in its namespace.

    Args:
        program: Python.
        tests: Statements.
        seconds: Of processor time, and of wall time beside the interpreter's start.
        memory: Bytes of address space.

    Returns:
        Of each test whether it was run to its end without an exception: none, where the program did not end well.

    Raises:
        SandboxError: The process cannot be confined here, or did not come so far in time.
    """
    token = secrets.token_hex(16)  # so that a program that prints what a good one would is not believed
    task = {"program": program, "tests": tests, "token": token, "seconds": seconds, "memory": memory}
    with tempfile.TemporaryDirectory(prefix="rlforget-sandbox-") as folder:
        reader, writer = os.pipe()
        with os.fdopen(reader, "rb") as told:
            child = subprocess.Popen(
                [sys.executable, "-I", str(_CHILD), str(writer)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=folder,
                env={"PATH": os.defpath, "HOME": folder, "OMP_NUM_THREADS": "1"},
                pass_fds=(writer,),
                start_new_session=True,
            )
            os.close(writer)
            try:
                child.communicate(json.dumps(task).encode(), timeout=seconds + _START)
            except subprocess.TimeoutExpired:
                pass
            finally:
                child.kill()
                child.communicate()
            said = told.read(1 << 16)
    if not said.startswith(READY):
        raise SandboxError(
            "the sandbox for code",
            expected="Linux 3.17 or newer on x86-64 or arm64, with seccomp, and limits that a process can take",
            found=f"{sys.platform} on {platform.machine()}, {seconds:g} s and {memory} bytes, exit {child.returncode}",
            fix="Score code on such a machine, within such limits; it is not run without.",
        )
    ended_well = child.returncode == 0
    return _results(said.removeprefix(READY) if ended_well else b"", token, len(tests))


def _results(said: bytes, token: str, count: int) -> list[bool]:
    """Read what a child said: the token and a digit a test."""
    text = said.decode("ascii", "replace")
    digits = text.removeprefix(token)
    if digits == text or len(digits) != count or set(digits) - {"0", "1"}:
        return [False] * count
    return [digit == "1" for digit in digits]
