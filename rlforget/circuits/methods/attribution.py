"""Attribution patching at heads: every head's effect from one gradient.

The first-order estimate of patching, (a(clean) − a(source)) · ∂F/∂a at the clean prompt (Nanda, 2023, attribution
patching; edge attribution patching, 2310.10348, whose node scores these are). It is exact where F is linear in a head's
output, and has the wrong size or even sign where the head's reader is saturated; `eap-ig` mends that.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from rlforget.circuits.ablation import Positions, Sources
from rlforget.circuits.heads import HeadSites
from rlforget.circuits.methods.linear_estimate import PositionSum, differences, over_positions, products
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
    *,
    position_sum: PositionSum = "dominant",
) -> MethodResult:
    """Score each head by its first-order effect at the clean prompts, averaged over prompts.

    Args:
        position_sum: How a prompt's positions become one number (see `PositionSum`).
    """
    sources = Sources(model, sites, batches, ablation, positions)
    found = []
    for batch in batches:
        moved = differences(model, sites, sources, batch)
        values = torch.stack(products(model, sites, batch, metric, moved))  # [layers, B, T, heads]
        found.append(over_positions(values, position_sum).transpose(0, 1).cpu())
    per_prompt = torch.cat(found)
    scores = per_prompt.mean(0, dtype=torch.float64).float()
    return MethodResult(scores, settings={"position_sum": position_sum}, per_prompt=per_prompt)
