"""Live weights under exceptions that come anywhere: every bit is as it was, or the change is whole."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rlforget.delta import Delta, apply, diff, revert
from rlforget.interference import ConflictSubspace, Coordinates
from rlforget.recovery import rollback
from rlforget.weights import open_weights
from rlforget.weights.interrupts import deferring_interrupts
from rlforget.weights.undo import SavedBits, all_or_nothing
from tests.interruption import Interrupter

Weights = dict[str, Tensor]


def fresh(weights: Weights) -> Weights:
    """Copies, one of them transposed in memory and one tied under a second name."""
    copies = {name: tensor.clone() for name, tensor in weights.items() if name != "tied"}
    copies["turned"] = copies["turned"].t().contiguous().t()
    return {**copies, "tied": copies["plain"]}


def same(one: Weights, other: Weights) -> bool:
    return all(torch.equal(one[name].view(torch.int16), other[name].view(torch.int16)) for name in one)


def pair() -> tuple[Weights, Weights]:
    generator = torch.Generator().manual_seed(0)
    before = {name: torch.randn(5, 4, generator=generator).bfloat16() for name in ("plain", "turned", "last")}
    after = {name: tensor + torch.randint(0, 2, (5, 4), generator=generator) for name, tensor in before.items()}
    return fresh(before), fresh(after)


BEFORE, AFTER = pair()
DELTA: Delta = diff(BEFORE, AFTER)
CORRECTION = {name: torch.full((5, 4), 0.25) for name in DELTA}
SUBSPACE = ConflictSubspace(CORRECTION, (), {name: torch.ones(16, 20) for name in DELTA})

RETURNING = 80
"""Lines of Python that end a change, most of them in `signal.signal`: it is whole then, and will not be undone."""

CHANGES: dict[str, tuple[Callable[[Weights], object], Weights]] = {
    "apply": (lambda weights: apply(weights, DELTA), BEFORE),
    "revert": (lambda weights: revert(weights, DELTA), AFTER),
    "rollback": (lambda weights: rollback(weights, DELTA, Coordinates.of(DELTA)), AFTER),
    "in part": (lambda weights: rollback(weights, DELTA, Coordinates.of(DELTA), strength=0.5), AFTER),
    "subspace": (lambda weights: rollback(weights, DELTA, SUBSPACE), AFTER),
}


@pytest.mark.parametrize("name", CHANGES)
def test_an_interrupt_at_any_line_leaves_every_bit_as_it_was(name: str) -> None:
    change, start = CHANGES[name]
    change(fresh(start))  # compiles what is compiled at the first call
    counting = Interrupter(None)
    done = fresh(start)
    assert not counting.run(lambda: change(done))
    assert not same(done, start)
    for line in range(counting.lines):
        weights, interrupter = fresh(start), Interrupter(line)
        raised = interrupter.run(lambda weights=weights: change(weights))  # type: ignore[misc]
        assert same(weights, start if raised else done), interrupter.place


# The second may meet a callback of the interpreter's own, out of which nothing is raised.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", CHANGES)
def test_ctrl_c_twice_at_any_line_leaves_every_bit_as_it_was(name: str) -> None:
    change, start = CHANGES[name]
    change(fresh(start))
    counting, done = Interrupter(None), fresh(start)
    counting.run(lambda: change(done))
    for line in range(counting.lines):
        weights, interrupter = fresh(start), Interrupter(line, twice=True)
        assert interrupter.run(lambda weights=weights: change(weights))  # type: ignore[misc]
        too_late = line >= counting.lines - RETURNING and same(weights, done)
        assert same(weights, start) or too_late, interrupter.place


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupted_undo_has_finished_or_not_begun() -> None:
    counting = Interrupter(None)
    counting.run(rollback(fresh(AFTER), DELTA, Coordinates.of(DELTA)))
    for line, twice in itertools.product(range(counting.lines), (False, True)):
        weights, interrupter = fresh(AFTER), Interrupter(line, twice=twice)
        undo = rollback(weights, DELTA, Coordinates.of(DELTA))
        interrupter.run(undo)
        assert same(weights, AFTER) or same(weights, BEFORE), interrupter.place
        undo()
        assert same(weights, AFTER)


def test_ctrl_c_waits_for_the_end_of_the_write_and_undoes_it() -> None:
    weights, seen = fresh(BEFORE), []

    def write(saved: dict[str, SavedBits]) -> None:
        saved["plain"] = SavedBits.whole(weights["plain"].clone())
        signal.raise_signal(signal.SIGINT)
        weights["plain"].zero_()
        seen.append("written")

    with pytest.raises(KeyboardInterrupt):
        all_or_nothing(open_weights(weights), write, lambda told, saved: None)
    assert seen == ["written"]
    assert same(weights, BEFORE)


def test_a_handler_that_does_not_raise_keeps_the_write() -> None:
    heard: list[int] = []
    usual = signal.signal(signal.SIGINT, lambda number, _: heard.append(number))
    try:
        assert deferring_interrupts(lambda: (signal.raise_signal(signal.SIGINT), len(heard))[1]) == 0
    finally:
        signal.signal(signal.SIGINT, usual)
    assert heard == [signal.SIGINT]


def test_other_threads_write_too() -> None:
    weights = fresh(BEFORE)
    thread = threading.Thread(target=lambda: apply(weights, DELTA))
    thread.start()
    thread.join()
    assert same(weights, AFTER)


def test_a_tensor_that_fails_and_memory_that_is_short() -> None:
    weights = fresh(BEFORE)
    for fault in (RuntimeError, MemoryError):

        def write(saved: dict[str, SavedBits], fault: type[Exception] = fault) -> None:
            for name in ("plain", "turned"):
                saved[name], _ = SavedBits.changed(weights[name].clone(), AFTER[name])
                weights[name].copy_(AFTER[name])
            raise fault

        with pytest.raises(fault):
            all_or_nothing(open_weights(weights), write, lambda told, saved: None)
        assert same(weights, BEFORE)


def test_a_storm_of_real_signals_never_leaves_half_a_change() -> None:
    result = subprocess.run([sys.executable, "-c", _STORM], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    interrupted, whole = map(int, result.stdout.split())
    assert interrupted >= 20
    assert whole == 200


_STORM = """
import os, random, signal, sys, threading, time
import torch
from rlforget.delta import apply, diff, revert

before = {f"t{i}": torch.randn(300) for i in range(40)}
after = {name: tensor + 1 for name, tensor in before.items()}
delta = diff(before, after)
live = {name: tensor.clone() for name, tensor in before.items()}
apply(live, delta), revert(live, delta)
start = time.perf_counter()
apply(live, delta), revert(live, delta)
span = time.perf_counter() - start
random.seed(0)
interrupted = whole = 0
for _ in range(200):
    killer = threading.Timer(random.uniform(0, span), os.kill, (os.getpid(), signal.SIGINT))
    try:
        killer.start()
        apply(live, delta)
        revert(live, delta)
        killer.join()
        time.sleep(0)
    except KeyboardInterrupt:
        interrupted += 1
    while True:
        try:
            killer.join()
            at = [all(torch.equal(live[name], end[name]) for name in live) for end in (before, after)]
            break
        except KeyboardInterrupt:
            interrupted += 1
    whole += any(at)
    if at[1]:
        revert(live, delta)
print(interrupted, whole)
"""
