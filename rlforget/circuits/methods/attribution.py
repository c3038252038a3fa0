"""Attribution patching at heads: every head's effect from one gradient.

The first-order estimate of patching, (a(clean) − a(source)) · ∂F/∂a at the clean prompt (Nanda, 2023, attribution
patching; edge attribution patching, 2310.10348, whose node scores these are). It is exact where F is linear in a head's
output, and has the wrong size or even sign where the head's reader is saturated; `eap-ig` mends that.
"""

from __future__ import annotations

import torch

from rlforget.circuits.methods.linear_estimate import PositionSum, at_clean_prompts, over_positions
from rlforget.circuits.methods.result import MethodResult
from rlforget.circuits.trial import Trial
from rlforget.counting import counted


def score(trial: Trial, seed: int, *, position_sum: PositionSum = "dominant") -> MethodResult:
    """Score each head by its first-order effect at the clean prompts, averaged over prompts.

    Every batch costs three forwards and one backward pass.

    Args:
        trial: The model and its task.
        seed: Not used: nothing is drawn.
        position_sum: How a prompt's positions become one number (see `PositionSum`).
    """
    found = []
    for number in counted("pairs", range(len(trial.batches)), size=lambda at: len(trial.batches[at])):
        _, products = at_clean_prompts(trial, number)  # one [B, T, heads] a layer
        found.append(over_positions(torch.stack(products), position_sum).transpose(0, 1).cpu())
    per_prompt = torch.cat(found)
    scores = per_prompt.mean(0, dtype=torch.float64).float()
    return MethodResult(scores, settings={"position_sum": position_sum}, per_prompt=per_prompt)
