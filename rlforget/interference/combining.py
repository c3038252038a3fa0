"""Fishers that fit a delta, and one Fisher for several domains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rlforget.errors import ConfigError, LayoutError, NonFiniteError
from rlforget.interference.empirical_fisher import Fisher

if TYPE_CHECKING:
    from rlforget.delta import Delta

Fishers = Fisher | Sequence[Fisher]


def combine_fishers(fishers: Sequence[Fisher], *, weights: Sequence[float] | None = None) -> Fisher:
    """Add up the Fishers of several domains, each divided by its mean, so that no domain drowns another.

    Args:
        fishers: One a domain, of one delta.
        weights: What each domain counts; by default all count 1.

    Returns:
        The weighted sum, of values and of gradients. Its mean is the sum of the weights.

    Raises:
        ConfigError: No Fisher, not one weight a Fisher, or a weight that is not positive.
        LayoutError: Fishers of different deltas.
        NonFiniteError: A Fisher that is zero everywhere, or holds NaN or infinity.
    """
    weights = [1.0] * len(fishers) if weights is None else list(weights)
    if not fishers or len(weights) != len(fishers) or not all(0.0 < weight < float("inf") for weight in weights):
        raise ConfigError(
            "weights",
            expected="a positive number for each of one Fisher or more",
            found=f"{weights} for {len(fishers)}",
            fix="Give one weight a domain; leave a domain out instead of weighing it 0.",
        )
    sizes = {name: value.numel() for name, value in fishers[0].values.items()}
    for one in fishers:
        _check(one, sizes)
    scales = [weight / (one.mean or 1.0) for one, weight in zip(fishers, weights, strict=True)]

    def total(name: str, part: str) -> Tensor:
        terms = [getattr(one, part)[name] * scale for one, scale in zip(fishers, scales, strict=True)]
        return torch.stack(terms).sum(0)

    return Fisher(
        {name: total(name, "values") for name in sizes},
        {name: total(name, "gradient") for name in sizes},
        sum(one.samples for one in fishers),
        fishers[0].where,
        None if fishers[0].whole_mean is None else sum(weights),
    )


def fisher_of(fishers: Fishers, delta: Delta) -> Fisher:
    """Return the one Fisher that stands for `fishers`, held to fit `delta`: one alone stays as it is.

    Raises:
        LayoutError: A Fisher of another delta.
        NonFiniteError: A Fisher that is zero everywhere, or holds NaN or infinity.
    """
    several = [fishers] if isinstance(fishers, Fisher) else list(fishers)
    sizes = {name: tensor.changed for name, tensor in delta.items() if delta.counts[name]}
    for one in several:
        _check(one, sizes)
    return several[0] if len(several) == 1 else combine_fishers(several)


def _check(fisher: Fisher, sizes: dict[str, int]) -> None:
    """Hold that a Fisher has `sizes` coordinates of each tensor, all of them finite and some of them positive."""
    for name, size in sizes.items():
        found = fisher.values[name].numel() if name in fisher.values else None
        if found != size:
            raise LayoutError(
                f"the Fisher of {name!r}",
                expected=f"{size} coordinates, as the delta changed",
                found="no such tensor" if found is None else str(found),
                fix="Measure it with rf.fisher(..., at=delta) for this very delta.",
            )
        if not bool(fisher.values[name].isfinite().all()):
            wrong = int((~fisher.values[name].isfinite()).sum())
            raise NonFiniteError(
                f"the Fisher of {name!r}",
                expected="finite numbers",
                found=f"NaN or Inf at {wrong} coordinates",
                fix="Look for NaN or Inf in the weights, or for gradients beyond the range of their dtype.",
            )
    if sizes and not fisher.mean > 0.0:
        raise NonFiniteError(
            "the Fisher of a domain",
            expected="a positive mean, to divide by",
            found=f"a mean of {fisher.mean} over {fisher.samples} samples",
            fix="Take it on samples that have gradients at the coordinates that the delta changed.",
        )
