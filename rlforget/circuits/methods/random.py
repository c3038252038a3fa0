"""Random scores: the control that every method is held against."""

from __future__ import annotations

import torch

from rlforget.circuits.methods.result import MethodResult
from rlforget.circuits.trial import Trial


def score(trial: Trial, seed: int) -> MethodResult:
    """Draw standard normal scores, the same for the same seed; the circuit is the heads above 0."""
    scores = torch.randn(trial.sites.shape, generator=torch.Generator().manual_seed(seed))
    return MethodResult(scores, scores > 0)
