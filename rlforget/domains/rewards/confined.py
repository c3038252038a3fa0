"""The child of `sandbox`: confines itself, then runs what it is given. It imports nothing of this project.

The filter lets through what a program needs that reads, computes and has threads, and answers EPERM to everything else,
known or not: networks, processes, signals, changes of files, of limits and of priorities. A few calls are looked into.
Numbers are those of Linux's arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import resource
import signal
import struct
import sys

EPERM, ENOSYS = 1, 38
_UNCONFINED = 97
READY = b"R"
"""What is told before anything is run, so that a child that never came so far is known from a wrong answer."""

_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# read and write what is open; stat; memory; signal handlers of one's own; clocks and sleep; identity; folders; futex
_ALLOWED = {
    "x86_64": """0 1 3 17 19 20 7 8 22 23 32 33 270 271 292 293 4 5 6 21 262 267 269 332 439 89 9 10 11 12 25 28
        13 14 15 131 35 36 96 100 201 228 229 230 39 63 79 98 97 99 102 104 107 108 110 111 186 309 318 78 217
        24 158 202 204 218 273 324 334 60 231""",
    "aarch64": """63 64 57 67 65 66 62 23 24 59 72 73 80 79 48 78 291 439 222 226 215 214 216 233 134 135 139 132
        101 102 169 153 113 114 115 172 160 17 165 163 179 174 175 176 177 173 178 168 278 61 124 98 123 96 99 283
        293 93 94""",
}
_OPEN = {"x86_64": {2: 1, 257: 2}, "aarch64": {56: 2}}  # open, openat: which argument holds the flags
_CLONE = {"x86_64": 56, "aarch64": 220}
_FCNTL = {"x86_64": 72, "aarch64": 25}
_IOCTL = {"x86_64": 16, "aarch64": 29}
_PRLIMIT = {"x86_64": 302, "aarch64": 261}
_CLONE3 = 435
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CLONE_THREAD = 0x10000
_FCNTLS = (0, 1, 2, 3, 1030)  # F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_DUPFD_CLOEXEC; not F_SETOWN, which signals
_IOCTLS = (0x5401, 0x5451, 0x541B)  # TCGETS, FIOCLEX, FIONREAD

# Classic BPF: load a word, jump if equal / if any bit is set / if at least, return.
_LOAD, _EQUAL, _ANY, _FROM, _RETURN = 0x20, 0x15, 0x45, 0x35, 0x06
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
Instruction = tuple[int, int, int, int]


def _low(argument: int) -> int:
    """Where the low half of an argument lies; the high half is 4 bytes on."""
    return 16 + 8 * argument


def _program(machine: str) -> bytes:
    """Write the filter. The call's number lies at 0, the architecture at 4."""
    code: list[Instruction] = [
        (_LOAD, 0, 0, 4),
        (_EQUAL, 1, 0, _AUDIT_ARCH[machine]),
        (_RETURN, 0, 0, _KILL),  # 32-bit calls have other numbers
        (_LOAD, 0, 0, 0),
        (_FROM, 0, 1, 0x40000000),  # so have those of x32
        (_RETURN, 0, 0, _ERRNO | EPERM),
        (_EQUAL, 0, 1, _CLONE3),  # its flags are in memory, out of sight: the C library then takes clone
        (_RETURN, 0, 0, _ERRNO | ENOSYS),
    ]
    for number in map(int, _ALLOWED[machine].split()):
        code += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ALLOW)]
    for number, flags in _OPEN[machine].items():
        code += _if(number, [_without(_low(flags), _WRITING)])
    code += _if(_CLONE[machine], [_with(_low(0), _CLONE_THREAD)])
    code += _if(_FCNTL[machine], [_one_of(_low(1), _FCNTLS)])
    code += _if(_IOCTL[machine], [_one_of(_low(1), _IOCTLS)])
    # Of this process, and nothing new: all four halves are zero.
    own = [_one_of(_low(argument) + half, (0,)) for argument in (0, 2) for half in (0, 4)]
    code += _if(_PRLIMIT[machine], own)
    code.append((_RETURN, 0, 0, _ERRNO | EPERM))
    return b"".join(struct.pack("HBBI", *instruction) for instruction in code)


def _without(offset: int, mask: int) -> list[Instruction]:
    """Hold that no bit of a mask is set: the last jump's targets are "refuse" (1) and "go on" (0)."""
    return [(_LOAD, 0, 0, offset), (_ANY, 1, 0, mask)]


def _with(offset: int, mask: int) -> list[Instruction]:
    """Hold that a bit of a mask is set."""
    return [(_LOAD, 0, 0, offset), (_ANY, 0, 1, mask)]


def _one_of(offset: int, values: tuple[int, ...]) -> list[Instruction]:
    """Hold that a word is one of some values."""
    tests: list[Instruction] = [
        (_EQUAL, len(values) - 1 - place, 1 if place == len(values) - 1 else 0, value)
        for place, value in enumerate(values)
    ]
    return [(_LOAD, 0, 0, offset), *tests]


def _if(number: int, conditions: list[list[Instruction]]) -> list[Instruction]:
    """Let a call through where all conditions hold; one that does not jumps over the rest, to the refusal."""
    body: list[Instruction] = []
    left = sum(map(len, conditions))
    for condition in conditions:
        left -= len(condition)
        *tests, (operation, yes, no, value) = condition
        # One of the last test's two targets is 1, the refusal: behind what is left, and the permission.
        refusal = left + 1
        body += [*tests, (operation, yes and refusal, no and refusal, value)]
    return [
        (_EQUAL, 0, len(body) + 2, number),
        *body,
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _ERRNO | EPERM),
    ]


def confine(seconds: float, memory: int) -> None:
    """Give up all that a program need not do, for good.

    Raises:
        OSError: The kernel does not take the filter.
        KeyError: This machine's calls are not known here.
    """
    machine = platform.machine()
    code = _program({"AMD64": "x86_64", "arm64": "aarch64"}.get(machine, machine))
    whole = max(1, int(seconds + 0.999))
    for limit, value in (
        (resource.RLIMIT_CPU, whole),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 64),
    ):
        resource.setrlimit(limit, (value, value))
    signal.alarm(whole + 1)  # asleep, a process takes no time of the processor
    libc = ctypes.CDLL(None, use_errno=True)
    held = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(held))
    no_new_privileges, seccomp, filter_mode, death_signal = 38, 22, 2, 1
    for arguments in (
        (death_signal, signal.SIGKILL, 0, 0, 0),  # with the one who asked
        (no_new_privileges, 1, 0, 0, 0),
        (seccomp, filter_mode, program, 0, 0),
    ):
        if libc.prctl(*arguments) != 0:
            raise OSError(ctypes.get_errno(), "prctl")


def main(told: int) -> None:
    """Read the task, confine this process, run it, and tell of each test whether it passed."""
    task = json.loads(sys.stdin.buffer.read())
    tests = [compile(test, "<test>", "exec") for test in task["tests"]]
    # Bound before the program runs, which may put others in their places.
    run, translate, tell, end, token = exec, compile, os.write, os._exit, task["token"]
    try:
        confine(task["seconds"], task["memory"])
    except (OSError, KeyError, ValueError, OverflowError, AttributeError):
        end(_UNCONFINED)
    tell(told, READY)
    namespace = {"__name__": "__main__"}
    run(translate(task["program"], "<program>", "exec"), namespace)
    results = ""
    for test in tests:
        try:
            run(test, namespace)
            results += "1"
        except Exception:
            results += "0"
    tell(told, (token + results).encode())
    end(0)


if __name__ == "__main__":
    main(int(sys.argv[1]))
