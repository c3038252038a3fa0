"""The smallest circuit that greedy removal leaves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rlforget.circuits.masked_runs import MaskedRuns, check_mask
from rlforget.circuits.roles import gap_of
from rlforget.circuits.task import Task
from rlforget.errors import ConfigError


@dataclass(frozen=True)
class Minimal:
    """What is left of a circuit after every head that can go has gone.

    Attributes:
        mask: bool [layers, heads].
        removed: (layer, head) in the order of their going.
        faithfulness: Normalised faithfulness of the circuit as given, then after each removal.
        floor: The faithfulness below which no removal may lead.
    """

    mask: Tensor
    removed: tuple[tuple[int, int], ...]
    faithfulness: tuple[float, ...]
    floor: float

    @property
    def was_minimal(self) -> bool:
        """Whether no head of the given circuit could go."""
        return not self.removed


def minimal(
    model: nn.Module,
    task: Task,
    mask: Tensor,
    *,
    tolerance: float = 0.05,
    at_once: int = 1,
    tokenizer: Any = None,
    **options: Any,
) -> Minimal:
    """Take heads out of a circuit, the most dispensable first, as long as it stays faithful.

    Greedy: each round evaluates the circuit without each of its heads and drops the one whose going leaves the highest
    faithfulness. It ends when every removal would lead below the floor, the given circuit's normalised faithfulness
    less `tolerance`; so no head of what is left can go, though a smaller circuit may exist. The cost is up to n²/2
    circuit evaluations for n heads, in batches.

    Args:
        model: A causal language model.
        task: The task.
        mask: bool [layers, heads], the circuit.
        tolerance: How much normalised faithfulness may be lost in all.
        at_once: Heads to drop a round; above 1 it is faster, and falls back to one where dropping them together leads
            below the floor.
        tokenizer: Encodes the task's text; by default the one in the model's folder.
        **options: `metric`, `ablation`, `positions`, `batch_size` and `samples`, as in `find`.

    Raises:
        ConfigError: A mask of another shape, a negative tolerance, or no head a round.
        UndefinedCircuitError: F(M) = F(∅).
    """
    if tolerance < 0 or at_once < 1:
        found = f"tolerance {tolerance}, at_once {at_once}"
        fix = "Give a share such as 0.01, and 1 head or more at once."
        raise ConfigError("minimal", expected="a tolerance from 0 and at_once from 1", found=found, fix=fix)
    runs = MaskedRuns(model, task, tokenizer=tokenizer, **options)
    mask = check_mask(mask, runs.shape)
    gap, empty = gap_of(runs), runs.values(torch.zeros_like(mask)[None]).mean()

    def faithful(masks: Tensor) -> Tensor:
        return (runs.values(masks).mean(1) - empty) / gap

    trace = [float(faithful(mask[None]))]
    floor = trace[0] - tolerance
    removed: list[tuple[int, int]] = []
    while len(heads := mask.nonzero()):
        after = faithful(_without_each(mask, heads))
        order = after.argsort(descending=True, stable=True)
        gone, value = order[:1], float(after[order[0]])
        if at_once > 1:
            together = _without(mask, heads[order[:at_once]])
            if (joint := float(faithful(together[None]))) >= floor:
                gone, value = order[:at_once], joint
        if value < floor:
            break
        mask = _without(mask, heads[gone])
        removed += [(layer, head) for layer, head in heads[gone].tolist()]
        trace.append(value)
    return Minimal(mask, tuple(removed), tuple(trace), floor)


def _without_each(mask: Tensor, heads: Tensor) -> Tensor:
    """Return one mask a head [heads, layers, heads of a layer], that head taken out."""
    return torch.stack([_without(mask, head[None]) for head in heads])


def _without(mask: Tensor, heads: Tensor) -> Tensor:
    """Return the mask less some heads [n, 2]."""
    smaller = mask.clone()
    smaller[heads[:, 0], heads[:, 1]] = False
    return smaller
