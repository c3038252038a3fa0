"""What a case is, where cases are found, and how one is measured beside its peers and the machine's ceiling.

A module `benchmarks/cases/<operator>.py` has a `CASES: dict[str, Callable[[Machine], Case]]`, from a label to what
makes the case on a device. Its file's name is the operator's in every table.
"""

from __future__ import annotations

import importlib
import pkgutil
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from benchmarks import cases, clock
from benchmarks.ceiling import Kind, float_speed, passes
from benchmarks.compiled import Compiled
from benchmarks.memory import peak_of

BUDGET = 0.5
ROUNDS = range(3, 31)  # of ours and the ceiling
SLOW = 3.0  # a peer has two rounds at least, but one if it takes as long as this
_REST = 0.005  # seconds until the threads that a peer leaves spinning sleep


@dataclass(frozen=True)
class Machine:
    """A device, and the size of what runs there.

    Attributes:
        device: Where the tensors are.
        elements: Coordinates of the largest case's tensors.
        quick: Whether only agreement is asked for, not time: few cases, no compiler.
    """

    device: torch.device
    elements: int
    quick: bool = False

    def smaller(self, elements: int) -> Machine:
        """The same with tensors of that many coordinates, if they are fewer."""
        return Machine(self.device, min(elements, self.elements), self.quick)


@dataclass(frozen=True)
class Unavailable:
    """A peer that cannot run here, and why."""

    reason: str


Peer = Callable[[], object] | Unavailable


@dataclass(frozen=True)
class Case:
    """One thing to time. Every function must bear being called any number of times.

    Attributes:
        moved: The fewest bytes that the task moves, read and written.
        ours: The operator.
        peers: The same task by others; "torch" and "torch.compile" by `compiled.torch_peers`.
        agree: Whether ours and the peers give the same, asked once before anything is timed.
        ceiling: What moves as many bytes and does nothing else: "read" for a task that writes little ("read one" of one
            array), else "copy".
        least: Bytes that the ceiling moves on a CPU, where they are not `moved`: those of the inputs alone, of a task
            that is held against a read of its inputs; those of whole lines of memory, of one that writes here and
            there.
        inputs: Bytes of the inputs, where a bar counts temporaries as a share of them.
        flops: Floating-point operations, of tasks that are more than memory traffic: those of dense products.
        error: What ours is off from float64, as a share of what the case's module says; asked once.
        heavy: Whether ours takes many seconds, so that it and its peers run but once; `agree` has to warm up.
        notes: What there is to say of a peer.
    """

    moved: int
    ours: Callable[[], object]
    peers: Mapping[str, Peer]
    agree: Callable[[], bool]
    ceiling: Kind = "copy"
    least: int = 0
    inputs: int = 0
    flops: int = 0
    error: Callable[[], float] | None = None
    heavy: bool = False
    notes: Mapping[str, str] = field(default_factory=dict)


Cases = Mapping[tuple[str, str], Callable[[Machine], Case]]
"""{(operator, label): what makes the case}."""


def discover() -> Cases:
    """Find every case: {(operator, label): what makes it}."""
    names = sorted(module.name for module in pkgutil.iter_modules(cases.__path__))
    found = {name: importlib.import_module(f"{cases.__name__}.{name}").CASES for name in names}
    return {(name, label): make for name, made in found.items() for label, make in made.items()}


@dataclass
class Measurement:
    """Times and memory of one case.

    Attributes:
        limit: Holds the compilation of a peer inside it.
        budget: Seconds that the rounds of ours and the ceiling take together, and those of each peer.
        seconds: Every time taken, of "ours", "ceiling" and each peer.
        extra_bytes: Peak memory beyond inputs and outputs, of ours and each peer; None where it is not known.
        peak_bytes: Peak memory with all that was held anyway, likewise.
        notes: What there is to say of a peer: why it did not run, or how often its graph broke.
        float_speed: The most float32 operations a second that this machine did between the rounds; 0 where none were
            counted: of a case without products, and on a GPU.
    """

    case: Case
    device: torch.device
    limit: Callable[[], AbstractContextManager[None]] = nullcontext
    budget: float = BUDGET
    seconds: dict[str, list[float]] = field(default_factory=dict)
    extra_bytes: dict[str, int | None] = field(default_factory=dict)
    peak_bytes: dict[str, int | None] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    float_speed: float = 0.0

    def __post_init__(self) -> None:
        self.notes |= self.case.notes
        self._peers = {name: peer for name, peer in self.case.peers.items() if self._runs(name, peer)}
        self._bytes = (self.case.least if self.device.type == "cpu" else 0) or self.case.moved
        self._passes = passes(self.case.ceiling, self._bytes, self.device)
        self.rounds = self._warm_up()
        self._error = self.case.error() if self.case.error else None

    def _runs(self, name: str, peer: Peer) -> bool:
        if isinstance(peer, Unavailable):
            self.notes[name] = peer.reason
            return False
        if isinstance(peer, Compiled):
            try:
                peer.start(self.limit)
            except Exception as error:  # whatever the compiler could not do is a result
                self.notes[name] = f"failed: {type(error).__name__}: {str(error).strip().splitlines()[0]}"
                return False
            if peer.note:
                self.notes[name] = peer.note
        return True

    def _warm_up(self) -> int:
        """Measure memory, which runs everything once; then tell how many rounds the budget allows."""
        if self.case.heavy:
            return 1
        self.case.ours()
        for name, function in {"ours": self.case.ours, **self._peers}.items():
            self._measure_memory(name, function)
        one = clock.timed(self.case.ours, self.device) + sum(clock.timed(run, self.device) for run in self._passes)
        return min(max(int(self.budget / one), ROUNDS.start), ROUNDS.stop - 1)

    def _measure_memory(self, name: str, function: Callable[[], object]) -> None:
        found = peak_of(function, self.device)
        self.peak_bytes[name], self.extra_bytes[name] = (None, None) if found is None else found

    def run(self) -> None:
        """Take all rounds."""
        if self.case.heavy:
            self._run_once()
            return
        for _ in range(self.rounds):
            self.before_ours()
            self.ours()

    def _run_once(self) -> None:
        """Take time and memory of one run of each."""
        for name, function in {"ours": self.case.ours, **self._peers}.items():
            self._measure_memory(name, partial(self._time, name, function))
        self.seconds["ceiling"] = [min(clock.timed(run, self.device) for run in self._passes)]

    def before_ours(self) -> None:
        """Run, for one round, the peers that have time left, then the ceiling: ours comes next, in its company."""
        for name, peer in self._peers.items():
            taken = self.seconds.setdefault(name, [])
            if not taken or (len(taken) < 2 and sum(taken) < SLOW) or sum(taken) < self.budget:
                taken.append(clock.timed(peer, self.device))
        time.sleep(_REST)
        best = min(clock.timed(run, self.device) for run in self._passes)
        self.seconds.setdefault("ceiling", []).append(best)
        if self.case.flops and self.device.type == "cpu":
            self.float_speed = max(self.float_speed, float_speed())

    def ours(self) -> None:
        """Run ours once."""
        self._time("ours", self.case.ours)

    def _time(self, name: str, function: Callable[[], object]) -> None:
        self.seconds.setdefault(name, []).append(clock.timed(function, self.device))

    def record(self) -> dict[str, Any]:
        """What goes into the results: the best time of each, for what is slower, other work on the machine slowed."""
        return {
            "device": self.device.type,
            "ceiling": self.case.ceiling,
            "moved": self.case.moved,
            "ceiling_moved": self._bytes,
            "inputs": self.case.inputs,
            "flops": self.case.flops,
            "float_speed": self.float_speed,
            "error": self._error,
            "rounds": self.rounds,
            "seconds": {name: min(taken) for name, taken in self.seconds.items()},
            "extra_bytes": self.extra_bytes,
            "peak_bytes": self.peak_bytes,
            "notes": self.notes,
        }
