"""How far a circuit is found again: under other seeds, and on halves of the prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlforget.circuits.circuit import Circuit
from rlforget.circuits.finding import find
from rlforget.circuits.task import Task
from rlforget.errors import ConfigError


def jaccard(masks: Sequence[Tensor] | Tensor) -> Tensor:
    """Measure the overlap |A ∩ B| / |A ∪ B| of every pair of circuits.

    Args:
        masks: Bool masks of one shape, e.g. [layers, heads] each; or all of them stacked.

    Returns:
        [masks, masks] float64, symmetric, 1 on the diagonal. Two empty circuits are equal: 1.

    Raises:
        ConfigError: No mask, or masks of several shapes.
    """
    shapes = {tuple(mask.shape) for mask in masks}
    if len(shapes) != 1:
        raise ConfigError(
            "the masks",
            expected="at least one, all of one shape",
            found=f"shapes {sorted(shapes)}" if shapes else "none",
            fix="Compare circuits of one architecture.",
        )
    flat = torch.stack([mask.bool().cpu().flatten() for mask in masks]).double()  # [masks, heads of the model]
    both = flat @ flat.T
    either = flat.sum(1)[:, None] + flat.sum(1)[None, :] - both
    return torch.where(either > 0, both / either.clamp_min(1), 1.0)


def off_diagonal_mean(overlaps: Tensor) -> float:
    """Return the mean overlap of two different masks.

    Args:
        overlaps: [masks, masks] from `jaccard`; of one mask alone the mean is NaN, since there is no pair.
    """
    count = overlaps.shape[0]
    pairs = overlaps[~torch.eye(count, dtype=torch.bool)]
    return float(pairs.mean()) if count > 1 else float("nan")


@dataclass(frozen=True)
class Stability:
    """How far repeated searches agree.

    Attributes:
        seeds: float64 [seeds, seeds], Jaccard overlap of the circuits of one task under several seeds.
        halves: float64 [splits], that of the circuits of the two halves of a task, one a random split: no other model's
            circuit can be expected to overlap more than this.
        circuits: The circuits of the whole task, one a seed.
    """

    seeds: Tensor
    halves: Tensor
    circuits: tuple[Circuit, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the overlaps and their means; NaN where there is no pair."""
        return {
            "seeds": self.seeds.tolist(),
            "halves": self.halves.tolist(),
            "seeds_mean": off_diagonal_mean(self.seeds),
            "halves_mean": float(self.halves.mean()),
        }


def stability(
    model: Any, task: Task | str, *, seeds: Sequence[int] = (0, 1, 2), splits: int = 3, **options: Any
) -> Stability:
    """Find the circuit again under other seeds and on halves of the task, and see how far the circuits overlap.

    Overlaps depend on circuit size, so a `size` is worth giving; that of circuits of independent choice is their
    share of heads p as p / (2 − p). With a method that draws nothing the seeds agree wholly, whatever the prompts.

    Args:
        model: A decoder-only causal language model.
        task: Pairs of prompts, or the name of a domain; two pairs or more.
        seeds: Seeds of the searches on the whole task.
        splits: Number of random splits into halves, whose searches take the first seed.
        **options: As in `find`.

    Raises:
        ConfigError: No seed, a negative number of splits, or a task too small to be halved.
    """
    chosen = Task.from_domain(task) if isinstance(task, str) else task
    if not seeds or splits < 0 or (splits and len(chosen) < 2):
        raise ConfigError(
            "stability",
            expected="at least one seed, and two pairs to halve",
            found=f"{len(seeds)} seeds, {splits} splits, {len(chosen)} pairs",
            fix="Pass more of what is missing.",
        )
    whole = tuple(find(model, chosen, seed=seed, **options) for seed in seeds)
    halves = []
    for split in range(splits):
        pair = [find(model, half, seed=seeds[0], **options).mask for half in halve(chosen, seed=split)]
        halves.append(float(jaccard(pair)[0, 1]))
    overlaps = jaccard([circuit.mask for circuit in whole])
    return Stability(overlaps, torch.tensor(halves, dtype=torch.float64), whole)


def halve(task: Task, *, seed: int = 0) -> tuple[Task, Task]:
    """Split a task's pairs at random into two; of an odd number the first half has one more."""
    order = torch.randperm(len(task), generator=torch.Generator().manual_seed(seed)).tolist()
    middle = (len(task) + 1) // 2
    first, second = sorted(order[:middle]), sorted(order[middle:])
    return (
        Task(f"{task.name}, half 1", [task.pairs[i] for i in first]),
        Task(f"{task.name}, half 2", [task.pairs[i] for i in second]),
    )
