"""Section "fisher": the Fisher of a model at the coordinates that changed, beside a backward pass a completion."""

from __future__ import annotations

from functools import cache, partial

import torch

import rlforget as rf
from benchmarks.compiled import Compiled
from benchmarks.gpu import completions
from benchmarks.gpu.completions import Lengths, batches
from benchmarks.gpu.model import CausalLM
from benchmarks.gpu.pair import pair, shape_on
from benchmarks.harness import Case, Cases, Machine

LENGTHS = Lengths(rows=8, prompt=96, completion=32)
SAMPLES = 16
QUICK = 4
CLOSE = 0.05
"""How far apart two Fishers of bfloat16 gradients may be, as a share of their norm."""


@cache
def delta(machine: Machine) -> rf.Delta:
    weights = pair(shape_on(machine), machine.device)
    return rf.diff(weights.before, weights.after)


def make(samples: int, machine: Machine) -> Case:
    shape = shape_on(machine)
    weights = pair(shape, machine.device).after
    model, compiled = CausalLM(shape, weights), CausalLM(shape, weights)
    compiled.compile_layers()
    given = batches(shape.vocabulary, LENGTHS, QUICK if machine.quick else samples, machine.device, seed=0)
    places = {name: one.indices.to(machine.device).long() for name, one in delta(machine).items() if one.changed}

    def ours() -> rf.Fisher:
        return rf.fisher(model, given, delta(machine), samples=samples)

    def agree() -> bool:
        values = torch.cat(list(ours().values.values()))
        theirs = torch.cat([one.cpu() for one in completions.fisher(model, given, places).values()])
        return bool((values - theirs).norm() <= CLOSE * theirs.norm())

    return Case(
        moved=0,
        ours=ours,
        peers={
            "torch": lambda: completions.fisher(model, given, places),
            "torch.compile": Compiled(lambda: completions.fisher(compiled, given, places)),
        },
        agree=agree,
        heavy=True,
        notes={"torch.compile": "its layers are compiled, each by itself"},
    )


CASES: Cases = {("model", f"rf.fisher at the coordinates, {SAMPLES} completions"): partial(make, SAMPLES)}
