"""A rollback into narrow dtypes: stochastic rounding, rounding to nearest, and float32, from the same correction.

In bfloat16 a stage of the miniature moves weights by many units in the last place. In float8, with the power-of-two
scale that such weights are stored by, most moves are one unit or none: the case in which rounding to nearest loses most
of a small correction.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rlforget import delta as deltas
from rlforget.experiments.measure import kept, regained, rewards
from rlforget.experiments.recovery_study.scene import Live, Row
from rlforget.interference import ConflictSubspace, conflict_subspace
from rlforget.recovery import rollback

_SCALES = {torch.bfloat16: 1.0, torch.float8_e4m3fn: 64.0}
Weights = Mapping[str, Tensor]


def rounding(live: Live) -> Iterator[Row]:
    """Roll back into weights of two narrow dtypes in three ways; rewards then and now are those of narrow weights."""
    now = {name: parameter.detach().clone() for name, parameter in live.model.named_parameters()}
    with live.kept_bits():
        for dtype, scale in _SCALES.items():
            yield from _in_dtype(live, now, dtype, scale)


def _in_dtype(live: Live, now: Weights, dtype: torch.dtype, scale: float) -> Iterator[Row]:
    before, after = (_narrow(weights, dtype, scale) for weights in (live.before, now))
    unit = deltas.diff(before, after).stats().total.unit_step_share
    wide_before, wide_after = (_wide(weights, scale) for weights in (before, after))
    then = _judge(live, wide_before)
    at_now = _judge(live, wide_after)
    change = deltas.diff(wide_before, live.model)
    found = conflict_subspace(
        live.model,
        change,
        list(live.scene.earlier),
        list(live.scene.later),
        samples=live.study.samples,
        passes=1,
        seed=live.course.seed,
        tokenizer=live.tokenizer,
    )
    with rollback(live.model, change, found):
        exact = _rewards(live)
    results = {
        "float32": exact,
        "stochastic": _judge(live, _wide(_stochastic(before, after, found, scale, live.course.seed), scale)),
        "nearest": _judge(live, _wide(_nearest(after, found, dtype, scale), scale)),
    }
    earlier, later = live.scene.earlier, live.scene.later
    for way, result in results.items():
        yield live.row(
            f"rounding, {way}",
            dtype=str(dtype).removeprefix("torch."),
            n=live.study.samples,
            value=unit,
            regained=regained(then, at_now, result, earlier),
            kept=kept(then, at_now, result, later),
        )


def _narrow(weights: Weights, dtype: torch.dtype, scale: float) -> dict[str, Tensor]:
    return {name: (value * scale).to(dtype) for name, value in weights.items()}


def _wide(weights: Weights, scale: float) -> dict[str, Tensor]:
    return {name: value.float() / scale for name, value in weights.items()}


def _stochastic(before: Weights, after: Weights, found: ConflictSubspace, scale: float, seed: int) -> dict[str, Tensor]:
    """Subtract the correction from weights that are stored times `scale`."""
    scaled = replace(found, correction={name: value * scale for name, value in found.correction.items()})
    held = {name: value.clone() for name, value in after.items()}
    rollback(held, deltas.diff(before, after), scaled, seed=seed)
    return held


def _nearest(after: Weights, found: ConflictSubspace, dtype: torch.dtype, scale: float) -> dict[str, Tensor]:
    held = dict(after)
    for name, value in found.correction.items():
        held[name] = (after[name].float() - scale * value).to(dtype)
    return held


@torch.no_grad()
def _hold(model: Any, weights: Weights) -> None:
    """Give the model these weights; `kept_bits` around it puts its own back."""
    for name, parameter in model.named_parameters():
        parameter.copy_(weights[name])


def _judge(live: Live, weights: Weights) -> dict[str, float]:
    _hold(live.model, weights)
    return _rewards(live)


def _rewards(live: Live) -> dict[str, float]:
    names = (*live.scene.earlier, *live.scene.later)
    return rewards(live.model, live.tokenizer, count=live.study.evaluation_prompts, names=names)


MEASURES = {"rounding": rounding}
