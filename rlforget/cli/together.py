"""One command that several processes run together, as `torchrun` starts them: they begin, speak and end as one.

The first rank speaks. A fault on any of them ends all: the rank that met it says so in a store that outlives it,
speaks, and goes; those that wait for it find their connection closed, look there, and go silently with the same exit
code. A rank that was killed says nothing, so those that are left look whose process is gone.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import typer

from rlforget.errors import WorldError

SHARED = frozenset({"diff", "apply", "revert", "verify", "conflict"})
"""The commands that several processes run together."""

_OWN_WAY = frozenset({"sequence"})  # its trainers meet by themselves
_VARIABLES = ("RANK", "MASTER_ADDR", "MASTER_PORT")
_PATIENCE = 1.0  # seconds for another rank to say what was its fault, before one's own is told
_MOMENT = 0.5  # seconds
_MEANWHILE = 10.0  # seconds, in which the first rank gets to where it refuses a command
_STOPPED = 128 + signal.SIGTERM  # which torchrun sends to all when one of them has ended
_MEETING = timedelta(minutes=5)  # until all have come, however slow the disk that Python is loaded from
# A rank may wait for as long as another has work. One that is gone is noticed at once, by its connections.
_LONGEST = timedelta(days=7)


class _Peer(NamedTuple):
    """Where a rank runs, as it says itself."""

    host: str
    process: int


class _Team:
    """The ranks of one command, seen from one of them. Made by all of them at once; see `together`."""

    def __init__(self, store: Any, number: int) -> None:
        from torch.distributed.distributed_c10d import PrefixStore, init_process_group

        from rlforget.weights.ranks import gathered

        self.rank, self.size = int(os.environ["RANK"]), size()
        self._store = PrefixStore(f"rlforget/{number}", store)
        self._store.set(f"here/{self.rank}", "")
        self._store.wait([f"here/{rank}" for rank in range(self.size)], _MEETING)
        group = PrefixStore("group", self._store)
        init_process_group("gloo", store=group, rank=self.rank, world_size=self.size, timeout=_LONGEST)
        here = _Peer(socket.gethostname(), os.getpid())
        peers = dict(enumerate(gathered(here)))
        self._neighbours = {rank: one for rank, one in peers.items() if one.host == here.host and not _gone(one)}

    def end(self) -> None:
        """Wait until all have done their work, so that none takes another's end for a fault."""
        from rlforget.weights.ranks import wait

        wait()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # sent to all as soon as one ends with a code

    def leave(self) -> None:
        """Close the connections to the others."""
        from torch import distributed

        distributed.destroy_process_group()

    def told(self, patience: float) -> int | None:
        """Return the exit code that goes with a fault that a rank has told of, if one does within so many seconds."""
        until = time.monotonic() + patience
        with suppress(RuntimeError):  # where the first rank held the store, and is gone
            while not self._store.check(["fault"]):
                if time.monotonic() > until:
                    return None
                time.sleep(0.02)
            return int(self._store.get("fault").decode().partition(" ")[2])
        return None

    def tell(self, code: int) -> bool:
        """Tell the others of a fault; returns False where one of them was quicker."""
        mine = f"{self.rank} {code}"
        with suppress(RuntimeError):
            return bool(self._store.compare_set("fault", "", mine).decode() == mine)
        return True

    def lost(self) -> list[int]:
        """Return the ranks on this machine whose processes are gone, or are in a moment: connections close first."""
        until = time.monotonic() + _MOMENT
        while not (found := [rank for rank, peer in self._neighbours.items() if _gone(peer)]):
            if time.monotonic() > until:
                break
            time.sleep(0.02)
        return found


_team: _Team | None = None
_teams = 0


def size() -> int:
    """Return how many processes were started together."""
    count = os.environ.get("WORLD_SIZE", "1")
    return int(count) if count.isdecimal() else 1


def begin(command: str) -> None:
    """Meet the other processes, where there are any; from here to the end of `together` the first one speaks alone.

    Raises:
        WorldError: The command is none that several processes run together, or they cannot meet.
    """
    global _team, _teams
    if size() == 1 or command in _OWN_WAY:
        return
    missing = [name for name in _VARIABLES if name not in os.environ]
    if missing:
        raise WorldError(
            f"WORLD_SIZE={size()}",
            expected=f"{', '.join(_VARIABLES)} beside it, as torchrun sets them",
            found=f"no {', '.join(missing)}",
            fix="Start it with torchrun, or unset WORLD_SIZE.",
        )
    if command not in SHARED:
        if os.environ["RANK"] != "0":
            time.sleep(_MEANWHILE)  # the first says it for all, and torchrun then stops the others
        known = ", ".join(sorted(SHARED | _OWN_WAY))
        raise WorldError(
            f"rlforget {command}",
            expected="one process",
            found=f"{size()} (WORLD_SIZE)",
            fix=f"Start it without torchrun; the commands that several processes share are {known}.",
        )
    _teams += 1
    try:
        _team = _Team(_meeting_place(), _teams)
    except (RuntimeError, ValueError) as fault:
        raise WorldError(
            f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}",
            expected=f"{size()} processes to meet there",
            found=str(fault).splitlines()[0],
            fix="Start all of them with torchrun, and look at what became of the others; or unset WORLD_SIZE.",
        ) from fault
    signal.signal(signal.SIGTERM, _stop)
    if _team.rank:
        sys.stdout = sys.stderr = _silence()


def take_own_gpu() -> None:
    """Let this process compute on a GPU of its own, as far as its machine has enough of them."""
    if _team is None:
        return
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", _team.rank)) % torch.cuda.device_count())


@contextmanager
def together() -> Iterator[None]:
    """Let the processes that `begin` brings together end as one: with one exit code, and one message at most.

    Raises:
        WorldError: Another process was killed.
        typer.Exit: Another one has told why all of them end.
    """
    global _team
    streams = sys.stdout, sys.stderr
    ended: typer.Exit | None = None
    try:
        try:
            yield
        except typer.Exit as found:  # a code that all of them end with
            ended = found
        if _team is not None:
            _team.end()
    except BaseException as fault:
        if _team is None:
            raise
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _speak_or_go(_team, fault, streams)
    finally:
        sys.stdout, sys.stderr = streams
        if _team is not None:
            _team.leave()
            _team = None
    if ended is not None:
        raise ended


def _speak_or_go(team: _Team, fault: BaseException, streams: Any) -> NoReturn:
    """End this process for a fault: with a message, unless another has told of one."""
    told = team.told(_PATIENCE if team.rank else 0.0)
    # What another's end looks like from here: a broken connection, what became of one, or torchrun's signal.
    lost = team.lost() if told is None and isinstance(fault, RuntimeError | WorldError | SystemExit) else []
    code = 1 if lost else _code_of(fault)
    if told is None and not team.tell(code):
        told = team.told(_PATIENCE)
    if told is not None:
        raise typer.Exit(told) from None
    sys.stdout, sys.stderr = streams
    if lost or (isinstance(fault, RuntimeError) and "gloo" in str(fault)):
        raise _lost(team, lost, fault) from fault
    if isinstance(fault, SystemExit):
        from rlforget.cli import output

        output.error("stopped by a signal")
        raise typer.Exit(_STOPPED)
    raise fault


def _code_of(fault: BaseException) -> int:
    if isinstance(fault, SystemExit | KeyboardInterrupt):
        return _STOPPED if isinstance(fault, SystemExit) else 128 + signal.SIGINT
    return int(getattr(fault, "exit_code", 1))  # that of wrong usage


def _lost(team: _Team, ranks: list[int], fault: BaseException) -> WorldError:
    which = f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}" if ranks else "a rank elsewhere"
    return WorldError(
        f"{which} of {team.size}",
        expected="all of them to go on",
        found="no process any more: killed from outside, or for memory" if ranks else str(fault).splitlines()[0],
        fix="Start the command again: what was being written is as it was before, or is put right then.",
    )


def _gone(peer: _Peer) -> bool:
    """Whether a process of this machine has ended, be it that nobody has asked yet how."""
    try:
        os.kill(peer.process, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    with suppress(OSError):  # there is no such file but on Linux
        return Path(f"/proc/{peer.process}/stat").read_text().rpartition(")")[2].split()[0] in ("Z", "X")
    return False


def _stop(number: int, frame: Any) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise SystemExit(_STOPPED)


@cache
def _meeting_place() -> Any:
    from torch.distributed.rendezvous import rendezvous

    store, _, _ = next(rendezvous("env://", timeout=_MEETING))
    return store


@cache
def _silence() -> Any:
    return open(os.devnull, "w", encoding="utf-8")
