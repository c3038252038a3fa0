"""Damage predicted from one end of a change, and the rise of the loss measured along it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch

from rlforget.experiments.recovery_study.scene import Live, Row
from rlforget.interference.completions import collect, completed, completion_log_probs
from rlforget.interference.divergence import kl_divergence
from rlforget.interference.point import changed_parameters, moved, toward_before
from rlforget.interference.predicted_damage import Curvature, damage

STRENGTHS = (0.25, 0.5, 0.75, 1.0)
_PREDICTORS: dict[str, tuple[Curvature, int]] = {
    "ggn": ("ggn", 1),
    "ggn at 3 points": ("ggn", 3),
    "fisher": ("fisher", 1),
}
"""The curvature, and at how many points along δ it is taken."""
_MOST = 256  # completions; the standard error of a mean rise is small beside the spread over scenes


def predicted_and_measured(live: Live) -> Iterator[Row]:
    """Predict the rise of the earlier domains' loss by every curvature, and measure it, at several strengths of δ.

    Completions are sampled once, at the earlier stage, and the loss is theirs: the measured rise is itself an estimate
    of KL(π_A ‖ π_t), by the tokens that were sampled. That divergence over the whole vocabulary, which is no prediction
    therefore, stands beside it, and its reverse.
    """
    samples = min(live.study.samples, _MOST)
    parameters = changed_parameters(live.model, live.delta)
    for domain in live.scene.earlier:
        drawn: dict[str, Any] = {"samples": samples, "seed": live.course.seed, "tokenizer": live.tokenizer}
        with moved(live.model, parameters, toward_before(live.delta, 1.0)):
            prompts = collect(live.model, domain, **drawn)
            batches = list(completed(live.model, prompts, seed=live.course.seed, tokenizer=live.tokenizer))
            start = _loss(live.model, batches)
            then = copy.deepcopy(live.model)
        rises = {}
        for strength in STRENGTHS:
            with moved(live.model, parameters, toward_before(live.delta, 1.0 - strength)):
                rises[strength] = _loss(live.model, batches) - start
        fields = {"n": samples, "earlier": domain}
        for predictor, (curvature, points) in _PREDICTORS.items():
            found = damage(live.model, live.delta, batches, curvature=curvature, points=points, samples=samples)
            for strength, rise in rises.items():
                row = live.row(f"damage, {predictor}", strength=strength, predicted=found.at(strength), value=rise)
                yield {**row, **fields}
        pairs = {"KL(then ‖ now)": (then, live.model), "KL(now ‖ then)": (live.model, then)}
        for strength, rise in rises.items():
            with moved(live.model, parameters, toward_before(live.delta, 1.0 - strength)):
                for name, (reference, other) in pairs.items():
                    found_kl = kl_divergence(reference, other, domain, **drawn)
                    row = live.row(f"damage, {name}", strength=strength, predicted=found_kl.mean, value=rise)
                    yield {**row, **fields}


@torch.no_grad()
def _loss(model: Any, batches: list[dict[str, torch.Tensor]]) -> float:
    """Mean of −log π over completions, nats a completion."""
    values = torch.cat([completion_log_probs(model, batch) for batch in batches])
    return -float(values.double().mean())


MEASURES = {"damage": predicted_and_measured}
