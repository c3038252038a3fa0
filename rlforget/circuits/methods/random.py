"""Random scores: the control that every method is held against."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from rlforget.circuits.ablation import Positions
from rlforget.circuits.heads import HeadSites
from rlforget.circuits.methods.result import MethodResult
from rlforget.circuits.metrics import Metric
from rlforget.circuits.task import TaskBatch


def score(
    model: nn.Module,
    sites: HeadSites,
    batches: Sequence[TaskBatch],
    metric: Metric,
    ablation: str,
    positions: Positions,
    seed: int,
) -> MethodResult:
    """Draw standard normal scores; the same seed gives the same ones."""
    return MethodResult(torch.randn(sites.shape, generator=torch.Generator().manual_seed(seed)))
