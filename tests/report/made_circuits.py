"""Circuits of a base and two fine-tunes, made in a moment: made-up effects, and real controls of them."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from rlforget.circuits.changed_weights import ChangedWeights, HeadChange, SliceChange
from rlforget.circuits.circuit import Circuit
from rlforget.circuits.comparison import compare_circuits
from rlforget.circuits.record import record
from rlforget.circuits.trajectory import trajectory_of_circuits

LAYERS, HEADS, PROMPTS, SIZE = 4, 4, 16, 6
STEPS = 4


@cache
def made_circuits() -> dict[str, Any]:
    """What `rlforget circuits compare` would write."""
    draw = torch.Generator().manual_seed(0)
    base = torch.randn(LAYERS, HEADS, generator=draw)
    ways = {
        name: [base + share * size * torch.randn(LAYERS, HEADS, generator=draw) for share in (0.25, 0.5, 0.75, 1.0)]
        for name, size in (("sft", 1.5), ("grpo", 0.3))
    }
    first = _circuit(base, draw)
    along = {name: [_circuit(scores, draw) for scores in way] for name, way in ways.items()}
    options: dict[str, Any] = {"permutations": 20, "bootstrap": 20, "splits": 5}
    compared = compare_circuits(first, {name: way[-1] for name, way in along.items()}, **options)
    trajectories = {}
    for name, way in along.items():
        steps = {f"step {10 * i}": one for i, one in enumerate(way, start=1)}
        rewards = {"base": 0.3} | {step: 0.3 + 0.1 * i for i, step in enumerate(steps, start=1)}
        trajectories[name] = trajectory_of_circuits(first, steps, rewards=rewards, **options)
    return record("science", compared, trajectories, {"heads that sft broke and grpo kept, delta 0.1": _changed()})


def _changed() -> ChangedWeights:
    part = SliceChange(coordinates=64, changed=16, norm=0.5, damage=None)
    return ChangedWeights([HeadChange((1, 2), {"q": part, "o": part}, {"q": 1, "o": 1})], {"q": part})


def _circuit(scores: torch.Tensor, draw: torch.Generator) -> Circuit:
    noise = 0.3 * torch.randn(PROMPTS, LAYERS, HEADS, generator=draw)
    mask = torch.zeros(scores.numel(), dtype=torch.bool)
    mask[scores.flatten().topk(SIZE).indices] = True
    per_prompt = scores + noise - noise.mean(0)
    metric = {"name": "log_prob_difference", "clean": 3.0, "per_prompt": {"clean": [3.0] * PROMPTS}}
    return Circuit(scores, mask.view(scores.shape), "eap-ig", metric, {"size": SIZE}, per_prompt=per_prompt)
