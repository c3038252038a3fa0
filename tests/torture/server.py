"""The process that jobs are forked from, see `injection`."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import tempfile
import traceback
from typing import Any

from rlforget.errors import RlforgetError
from tests.torture import jobs

SECONDS = 60
AT_FAULT, CRASHED = 1, 99


def main() -> None:
    library = ctypes.CDLL(sys.argv[1])
    library.inject_count.restype = ctypes.c_long
    library.inject_name.restype = ctypes.c_char_p
    library.inject_trace.restype = ctypes.c_char_p
    library.inject_arm.argtypes = [ctypes.c_int, ctypes.c_long, ctypes.c_int, ctypes.c_char_p]
    replies = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        request = json.loads(line)
        library.inject_reset()
        with tempfile.TemporaryFile() as output:
            code = _forked(library, request, output.fileno()) if request["fork"] else _here(request, output.fileno())
            output.seek(0)
            text = output.read().decode(errors="replace")
        reply = {
            "code": code,
            "calls": library.inject_count(),
            "call": library.inject_name().decode(),
            "text": text,
            "trace": os.fsdecode(library.inject_trace()).splitlines(),
        }
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


def _here(request: dict[str, Any], output: int) -> int:
    """Run a job in this very process, so that what it imports and compiles is there for the forks."""
    for stream in (1, 2):
        os.dup2(output, stream)
    return _run(request)


def _forked(library: Any, request: dict[str, Any], output: int) -> int:
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    signal.alarm(SECONDS)
    for stream in (1, 2):
        os.dup2(output, stream)
    library.inject_arm(request["mode"], request["at"], request["error"], os.fsencode(request["folder"]))
    os._exit(_run(request))


def _run(request: dict[str, Any]) -> int:
    code = 0
    try:
        getattr(jobs, request["job"])(*request["arguments"])
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else AT_FAULT if ending.code else 0
    except RlforgetError as fault:
        code = AT_FAULT
        print(f"{type(fault).__name__}: {fault}")
    except BaseException:
        code = CRASHED
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    return code


if __name__ == "__main__":
    main()
