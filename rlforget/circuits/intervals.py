"""How far a figure moves when other prompts are drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from rlforget.errors import ConfigError

Statistic = Callable[[Tensor], Tensor]
"""From means over prompts [quantities, draws] to one number a draw [draws], both float64."""


@dataclass(frozen=True)
class Interval:
    """A percentile bootstrap interval.

    Attributes:
        estimate: The statistic on the prompts as they are.
        low: Its lower bound.
        high: Its upper bound.
        level: The share of draws between the bounds.
        draws: Number of resamples.
    """

    estimate: float
    low: float
    high: float
    level: float
    draws: int

    def to_dict(self) -> dict[str, Any]:
        """Return the interval as plain numbers."""
        return asdict(self)


def bootstrap(
    prompts: Tensor, statistic: Statistic, *, draws: int = 1000, level: float = 0.95, seed: int = 0
) -> Interval:
    """Resample prompts, with replacement, and see how far a statistic of their means moves.

    All quantities of one prompt are drawn together, since they are paired. A draw on which the statistic is not finite
    (a ratio whose denominator vanishes there) counts as beyond both bounds: it widens the interval rather than
    disappearing from it.

    Args:
        prompts: [quantities, prompts] real numbers, e.g. the metric of the whole model, the circuit and the empty one.
        statistic: Vectorised over draws.
        draws: Number of resamples.
        level: The interval's level, between 0 and 1.
        seed: Seed of the resamples.

    Raises:
        ConfigError: No prompt, no draw, or a level outside (0, 1).
    """
    count = prompts.shape[1]
    if count < 1 or draws < 1 or not 0 < level < 1:
        raise ConfigError(
            "the bootstrap",
            expected="at least one prompt and one draw, and a level between 0 and 1",
            found=f"{count} prompts, {draws} draws, level {level}",
            fix="Pass more prompts, or mend the setting.",
        )
    values = prompts.double().cpu()
    generator = torch.Generator().manual_seed(seed)
    picks = torch.randint(count, (draws, count), generator=generator)
    weights = torch.zeros(draws, count, dtype=torch.float64).scatter_add_(1, picks, torch.ones(draws, count).double())
    drawn = statistic(values @ weights.T / count)
    estimate = float(statistic(values.mean(1, keepdim=True)))
    tail = torch.tensor([(1 - level) / 2], dtype=torch.float64)
    low = torch.quantile(_beyond(drawn, -torch.inf), tail, interpolation="lower")
    high = torch.quantile(_beyond(drawn, torch.inf), 1 - tail, interpolation="higher")
    return Interval(estimate, float(low), float(high), level, draws)


def _beyond(drawn: Tensor, bound: float) -> Tensor:
    return torch.where(torch.isfinite(drawn), drawn, bound)
