"""The effects of a model's heads as flat arrays, and what two models have in common: the arithmetic of a comparison.

Heads are numbered row by row: head h of layer l is l · heads + h, and N is their count.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt

from rlforget.errors import ConfigError, LayoutError, NonFiniteError

if TYPE_CHECKING:
    from rlforget.circuits.circuit import Circuit

Values = npt.NDArray[np.float64]
Heads = npt.NDArray[np.bool_]

KEEPS = {"retention": 1, "iou": 1, "correlation": 1, "rank_correlation": 1, "mask_shift": -1}
"""The measures of two models, and whether more (1) or less (−1) of each means that more was kept."""


@dataclass(frozen=True)
class HeadEffects:
    """A circuit, flattened.

    Attributes:
        scores: float64 [N], mean effect of each head on the metric.
        mask: bool [N], the heads of the circuit.
        per_prompt: float64 [n, N], each prompt's effects, whose mean is `scores`; None where the method has none.
        shape: (layers, heads).
    """

    scores: Values
    mask: Heads
    per_prompt: Values | None
    shape: tuple[int, int]

    @classmethod
    def of(cls, circuit: Circuit, name: str = "the circuit") -> HeadEffects:
        """Flatten a circuit.

        Raises:
            ConfigError: The circuit has no head, or its per-prompt scores do not average to its scores.
            NonFiniteError: A score is NaN or infinite.
        """
        layers, heads = circuit.scores.shape
        scores = np.asarray(circuit.scores.detach().cpu().double().numpy(), dtype=np.float64).reshape(-1)
        mask = np.asarray(circuit.mask.detach().cpu().numpy(), dtype=np.bool_).reshape(-1)
        per_prompt = None
        if circuit.per_prompt is not None and circuit.per_prompt.shape[0] > 0:
            given = circuit.per_prompt.detach().cpu().double().numpy()
            per_prompt = np.asarray(given, dtype=np.float64).reshape(-1, scores.size)
        _check(name, scores, mask, per_prompt)
        return cls(scores, mask, per_prompt, (int(layers), int(heads)))

    @property
    def count(self) -> int:
        """N, how many heads the model has."""
        return self.scores.size

    @property
    def size(self) -> int:
        """How many heads the circuit has."""
        return int(self.mask.sum())

    @property
    def prompts(self) -> int:
        """How many prompts have scores of their own."""
        return 0 if self.per_prompt is None else int(self.per_prompt.shape[0])

    @property
    def is_top(self) -> bool:
        """Whether the circuit is the heads of largest effect, no more and no less."""
        return bool(np.array_equal(self.mask, top(self.scores, self.size)))


@dataclass(frozen=True)
class View:
    """One model's heads, seen once or in many draws.

    Attributes:
        mask: bool [..., N], the circuit.
        scores: float64 [..., N], the effects.
        soft: float64 [..., N], m_h in [0, 1], see `soft_mask`.
    """

    mask: Heads
    scores: Values
    soft: Values


def top(values: Values, size: int) -> Heads:
    """Mark the `size` largest of the last axis, ties to the lowest index: [..., N] -> bool [..., N]."""
    order = np.argsort(-values, axis=-1, kind="stable")[..., :size]
    mask = np.zeros(values.shape, dtype=np.bool_)
    np.put_along_axis(mask, order, True, axis=-1)
    return mask


def scale(values: Values) -> Values:
    """Return the size of a model's effects: the mean of |effect| without the largest and smallest tenth.

    One head can move a root mean square far, and would then seem to change all the others: [..., N] -> [..., 1].
    """
    rising = np.sort(np.abs(values), axis=-1)
    cut = max(1, values.shape[-1] // 10) if values.shape[-1] > 2 else 0
    size = rising[..., cut : values.shape[-1] - cut].mean(-1, keepdims=True)
    return cast(Values, np.where(size > 0, size, 1.0))


def relative(values: Values) -> Values:
    """Divide effects by their `scale`, so that what makes all of a model's effects larger drops out: [..., N]."""
    return values / scale(values)


def threshold(values: Values, size: int) -> Values:
    """Return what the `size` largest clear, half-way to the next one: [..., N] -> [..., 1].

    Where the last of them helps the task, half-way to 0 at most: a head without effect never clears it.
    """
    falling = -np.sort(-values, axis=-1)
    last = falling[..., size - 1 : size]
    following = falling[..., size : size + 1] if size < values.shape[-1] else last - 1.0
    return (last + np.where(last > 0, np.maximum(following, 0.0), following)) / 2


def soft_mask(effects: HeadEffects, means: Values, level: Values, prompts: int) -> Values:
    """Return m_h: the chance that the head clears `level` on another draw of as many prompts.

    A reconstruction. The paper's masks are binary after annealing, so that every δ below 1 names the same vulnerable
    heads; this m_h also says by how much a head is in or out. It is a function of the head alone, whatever the others
    do. A normal approximation: Φ((effect − level) / standard error), with the effects over their `scale`.
    Without per-prompt scores it is the binary mask.

    Args:
        effects: The model's heads.
        means: float64 [..., N], its mean effects, of all prompts or of a draw of them.
        level: float64 [..., 1], the threshold, for effects over their `scale`.
        prompts: How many prompts went into a mean.
    """
    from scipy.special import ndtr

    if effects.per_prompt is None or effects.prompts < 2:
        return np.broadcast_to(effects.mask, means.shape).astype(np.float64)
    error = effects.per_prompt.std(axis=0, ddof=1) / (np.sqrt(prompts) * scale(effects.scores))
    distance = relative(means) - level
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = np.where(error > 0, distance / error, np.where(distance > 0, np.inf, -np.inf))
    return cast(Values, ndtr(steps))


def view(effects: HeadEffects, means: Values, size: int, level: Values, prompts: int) -> View:
    """See a model through the mean effects of a draw of prompts, its circuit the `size` largest."""
    return View(top(means, size), means, soft_mask(effects, means, level, prompts))


def own_view(effects: HeadEffects, level: Values, size: int | None = None) -> View:
    """See a model as it was found; with `size`, its circuit is its so many largest heads."""
    mask = effects.mask if size is None else top(effects.scores, size)
    return View(mask, effects.scores, soft_mask(effects, effects.scores, level, effects.prompts))


def measure(base: View, other: View) -> dict[str, Values]:
    """Measure what `other` keeps of `base`, over the last axis; leading axes broadcast.

    | name | formula |
    | --- | --- |
    | `retention` | |C_base ∩ C| / |C_base| (arXiv 2605.28860) |
    | `iou` | |C_base ∩ C| / |C_base ∪ C| |
    | `correlation`, `rank_correlation` | Pearson's and Spearman's, of the effects; 0 where one of them is constant |
    | `mask_shift` | mean over the heads of |m_h − m_h^base| |
    """
    common = (base.mask & other.mask).sum(-1)
    first, second = base.mask.sum(-1), other.mask.sum(-1)
    return {
        "retention": common / first,
        "iou": common / (first + second - common),
        "correlation": _correlation(base.scores, other.scores),
        "rank_correlation": _correlation(_ranks(base.scores), _ranks(other.scores)),
        "mask_shift": np.abs(other.soft - base.soft).mean(-1),
    }


def kept(measures: dict[str, Values]) -> dict[str, Values]:
    """Turn each measure so that more is more kept, rounded so that equal values stay equal however they were summed."""
    return {name: np.round(KEEPS[name] * values, 10) for name, values in measures.items()}


def check_same_heads(base: HeadEffects, other: HeadEffects, name: str) -> None:
    """Raise LayoutError where two models have not the same layers and heads."""
    if base.shape != other.shape:
        raise LayoutError(
            f"the circuit of {name}",
            expected=f"{base.shape[0]} layers of {base.shape[1]} heads, as in the base",
            found=f"{other.shape[0]} layers of {other.shape[1]} heads",
            fix="Compare models of one architecture.",
        )


def _ranks(values: Values) -> Values:
    from scipy.stats import rankdata

    return cast(Values, rankdata(values, axis=-1))


def _correlation(first: Values, second: Values) -> Values:
    a = first - first.mean(-1, keepdims=True)
    b = second - second.mean(-1, keepdims=True)
    size = np.sqrt((a**2).sum(-1) * (b**2).sum(-1))
    return cast(Values, np.where(size > 0, (a * b).sum(-1) / np.where(size > 0, size, 1.0), 0.0))


def _check(name: str, scores: Values, mask: Heads, per_prompt: Values | None) -> None:
    if not np.isfinite(scores).all() or (per_prompt is not None and not np.isfinite(per_prompt).all()):
        raise NonFiniteError(
            f"the head scores of {name}",
            expected="finite numbers",
            found="NaN or Inf",
            fix="Look for NaN or Inf in the model's weights, or find the circuit in float32.",
        )
    if not mask.any():
        raise ConfigError(
            f"the circuit of {name}",
            expected="at least one head",
            found="none",
            fix="Ask for a larger size; a retention of no heads is undefined.",
        )
    if per_prompt is not None:
        gap = float(np.abs(per_prompt.mean(0) - scores).max())
        if gap > 1e-3 * float(np.abs(per_prompt).max()) + 1e-6:
            raise ConfigError(
                f"the per-prompt scores of {name}",
                expected="a mean over the prompts equal to the scores",
                found=f"a difference of {gap:.3g}",
                fix="Give the scores of the same prompts, or none.",
            )
