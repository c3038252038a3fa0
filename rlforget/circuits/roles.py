"""What each head does for a task by itself: what is lost without it, and what it does alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rlforget.circuits.judging import check_gap
from rlforget.circuits.masked_runs import MaskedRuns, check_mask
from rlforget.circuits.task import Task


def necessity(
    model: nn.Module,
    task: Task,
    *,
    within: Tensor | None = None,
    normalise: bool = True,
    tokenizer: Any = None,
    **options: Any,
) -> Tensor:
    """Measure what is lost when one head alone is replaced: F(M) − F(M∖h).

    The paper's necessity (2605.28860): the fall of the log-probability when the head is disrupted. A reconstruction:
    the paper's way of disrupting is not known, so it is the `ablation` here.

    Args:
        model: A causal language model.
        task: The task.
        within: bool [layers, heads]: take heads out of this circuit rather than out of the model; those that are not
            in it get 0, and a head's necessity is then F(C) − F(C∖h).
        normalise: Divide by F(M) − F(∅), so that 1 is all that the heads do.
        tokenizer: Encodes the task's text; by default the one in the model's folder.
        **options: `metric`, `ablation`, `positions`, `batch_size` and `samples`, as in `find`.

    Returns:
        float64 [layers, heads].

    Raises:
        UndefinedCircuitError: F(M) = F(∅), where it is to be normalised.
    """
    runs = MaskedRuns(model, task, tokenizer=tokenizer, **options)
    whole = torch.ones(runs.shape, dtype=torch.bool) if within is None else check_mask(within, runs.shape)
    without = whole & ~torch.eye(whole.numel(), dtype=torch.bool).view(-1, *whole.shape)
    with_it = runs.values(whole[None]).mean()
    lost = with_it - runs.values(without).mean(1).view(whole.shape)
    return lost / gap_of(runs) if normalise else lost


def sufficiency(
    model: nn.Module, task: Task, *, normalise: bool = True, tokenizer: Any = None, **options: Any
) -> Tensor:
    """Measure what one head does alone, every other one replaced: F({h}) − F(∅).

    The paper's sufficiency (2605.28860): how much of the behaviour the head recovers when only it is kept. A
    reconstruction in its normalisation.

    Args:
        model: A causal language model.
        task: The task.
        normalise: Divide by F(M) − F(∅), so that 1 is all that the heads do.
        tokenizer: Encodes the task's text; by default the one in the model's folder.
        **options: `metric`, `ablation`, `positions`, `batch_size` and `samples`, as in `find`.

    Returns:
        float64 [layers, heads].

    Raises:
        UndefinedCircuitError: F(M) = F(∅), where it is to be normalised.
    """
    runs = MaskedRuns(model, task, tokenizer=tokenizer, **options)
    layers, heads = runs.shape
    alone = torch.eye(layers * heads, dtype=torch.bool).view(-1, layers, heads)
    empty = runs.values(torch.zeros(1, layers, heads, dtype=torch.bool)).mean()
    gained = runs.values(alone).mean(1).view(layers, heads) - empty
    return gained / gap_of(runs) if normalise else gained


def gap_of(runs: MaskedRuns) -> float:
    """Return F(M) − F(∅).

    Raises:
        UndefinedCircuitError: It is 0.
    """
    every = torch.ones(1, *runs.shape, dtype=torch.bool)
    full, empty = runs.values(torch.cat([every, ~every])).mean(1).tolist()
    check_gap(full, empty)
    return float(full - empty)
