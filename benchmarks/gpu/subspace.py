"""Section "subspace": the correction of a conflict subspace, solved without a stored gradient, and its write.

It is solved with a few of the model's layers, of their full widths, and with its embedding, and written into the whole
model. Torch has no such step: beside it stands a forward and backward pass of the same completions, as training on them
would take.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

import rlforget as rf
from benchmarks.compiled import Compiled
from benchmarks.gpu.completions import Lengths, batches, training_step
from benchmarks.gpu.model import CausalLM
from benchmarks.gpu.pair import pair, shape_on
from benchmarks.harness import Case, Cases, Machine

LENGTHS = Lengths(rows=64, prompt=48, completion=16)
QUICK = (2, 4)
"""Layers and completions a domain, of the tiny model."""

CORRECTION = 1e-5
PEER = "no such step: a forward and backward pass of the same completions"


def solving(layers: int, samples: int, machine: Machine) -> Case:
    if machine.quick:
        layers, samples = QUICK
    shape = shape_on(machine, layers)
    weights = pair(shape, machine.device)
    delta = rf.diff(weights.before, weights.after)
    model, compiled = CausalLM(shape, weights.after), CausalLM(shape, weights.after)
    compiled.compile_layers()
    earlier, later = (batches(shape.vocabulary, LENGTHS, samples, machine.device, seed) for seed in (1, 2))

    def solve(count: int, block: int) -> rf.ConflictSubspace:
        return rf.conflict_subspace(
            model, delta, [earlier], [later], samples=count, passes=1, form="streamed", block=block
        )

    def agree() -> bool:
        (one,) = solve(QUICK[1], 1).passes
        return 0 < one.damage_left < one.damage

    return Case(
        moved=0,
        ours=lambda: solve(samples, LENGTHS.rows),
        peers={
            "torch": lambda: training_step(model, earlier + later),
            "torch.compile": Compiled(lambda: training_step(compiled, earlier + later)),
        },
        agree=agree,
        heavy=True,
        notes={"torch": PEER, "torch.compile": f"{PEER}, its layers compiled"},
    )


def writing(machine: Machine) -> Case:
    weights = pair(shape_on(machine), machine.device)
    delta = rf.diff(weights.before, weights.after)
    random = torch.Generator(machine.device).manual_seed(2)
    correction = {
        name: ((torch.rand(one.shape, generator=random, device=machine.device) - 0.5) * 2 * CORRECTION).cpu()
        for name, one in weights.after.items()
    }
    subspace = rf.ConflictSubspace(correction, (), {})

    def ours() -> None:
        rf.rollback(weights.after, delta, subspace)()

    def peer() -> None:
        kept = {}
        for name, weight in weights.after.items():
            kept[name] = weight.clone()
            weight.copy_(weight.float() - correction[name].to(weight.device))
        for name, weight in weights.after.items():
            weight.copy_(kept[name])

    def agree() -> bool:
        undo = rf.rollback(weights.after, delta, subspace)
        written = undo.report.written
        undo()
        return written > 0 and rf.diff(weights.before, weights.after).changed == delta.changed

    return Case(
        moved=0,
        ours=ours,
        peers={"torch": peer},
        agree=agree,
        heavy=True,
        notes={"torch": "rounds to nearest, checks nothing, and keeps all weights"},
    )


def _solved(layers: int, samples: int) -> dict[tuple[str, str], Callable[[Machine], Case]]:
    name = f"rf.conflict_subspace, n = {samples}, {layers} of 36 layers"
    return {("model", name): partial(solving, layers, samples)}


# Completions a domain: n to restore, and n to protect. What takes longest comes last.
CASES: Cases = {
    **_solved(1, 64),
    **_solved(2, 256),
    ("model", "rf.rollback of a dense correction, and its undo"): writing,
    **_solved(4, 256),
}
