"""What a method of finding circuits is, and what it returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from rlforget.circuits.trial import Trial


@dataclass(frozen=True)
class MethodResult:
    """What a method found.

    Attributes:
        scores: float32 [layers, heads] on the CPU: how much the metric falls, by the method's estimate, when the
            head's output is replaced (positive: needed), averaged over prompts.
        mask: bool [layers, heads] where the method chooses the heads itself, else None.
        settings: The method's options as they were used, and what it did on the way; JSON values.
        per_prompt: float32 [prompts, layers, heads] on the CPU, whose mean is `scores`; None where a method has no
            score of a single prompt.
    """

    scores: Tensor
    mask: Tensor | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    per_prompt: Tensor | None = None


class Method(Protocol):
    """A function that scores heads."""

    def __call__(self, trial: Trial, seed: int, **options: Any) -> MethodResult:
        """Score every head of the trial's model on its batches."""
