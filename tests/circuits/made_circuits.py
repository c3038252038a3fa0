"""Circuits made of drawn effects: what heads share, what a seed adds, what prompts add."""

from __future__ import annotations

import numpy as np
import torch

from rlforget.circuits import Circuit
from rlforget.circuits.effects import HeadEffects


def replicates(
    random: np.random.Generator,
    count: int,
    *,
    shape: tuple[int, int] = (4, 4),
    prompts: int = 24,
    size: int = 5,
    seed_noise: float = 0.3,
    prompt_noise: float = 0.5,
    scale: float = 0.0,
) -> list[Circuit]:
    """Draw circuits that differ by seed noise alone.

    Few heads have large effects, with heavy tails; a seed moves large ones more; prompts vary in how much they bring
    out, and share some of their noise between models. `scale` is how much (in logs) all of a model's effects vary.
    """
    heads = shape[0] * shape[1]
    shared = random.standard_t(3, heads) * (random.random(heads) < 0.4) + 0.1 * random.normal(size=heads)
    difficulty = random.lognormal(0, 0.4, prompts)[:, None]
    common = 0.5 * prompt_noise * random.normal(size=(prompts, heads))
    found = []
    for _ in range(count):
        own = shared + seed_noise * random.normal(size=heads) * (0.3 + np.abs(shared))
        drawn = difficulty * own + common + prompt_noise * random.normal(size=(prompts, heads))
        found.append(circuit(drawn * np.exp(scale * random.normal()), shape, size))
    return found


def circuit(per_prompt: np.ndarray, shape: tuple[int, int], size: int) -> Circuit:
    """Make a circuit of the `size` largest heads: per_prompt [prompts, layers · heads]."""
    values = torch.tensor(per_prompt, dtype=torch.float32).view(-1, *shape)
    scores = values.double().mean(0).float()
    made = Circuit(scores, torch.zeros(shape, dtype=torch.bool), "made", {"name": "made"}, per_prompt=values)
    return of_mask(scores, made.top(size), values)


def of_mask(scores: torch.Tensor, mask: torch.Tensor, per_prompt: torch.Tensor | None = None) -> Circuit:
    return Circuit(scores, mask, "made", {"name": "made"}, per_prompt=per_prompt)


def effects(one: Circuit) -> HeadEffects:
    return HeadEffects.of(one)


def below(values: list[float], level: float = 0.05) -> float:
    return float(np.mean(np.array(values) < level))
