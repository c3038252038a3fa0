"""How many prompts a rollback needs, and the rank of the Gram matrix that explains it: for models of several sizes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from rlforget.experiments.recovery_study.rules import by_passes
from rlforget.experiments.recovery_study.scene import Live, Row
from rlforget.interference.gram import sample_gram
from rlforget.interference.measured_subspace import GradientSpectrum
from rlforget.interference.point import changed_parameters, moved, toward_before

ROW_BUDGET = 512
"""Rows of tokens that are drawn for a domain, at most."""

_KINDS: tuple[tuple[str, int, dict[str, Any]], ...] = (
    ("sequence", 512, {}),
    ("sequence", 128, {"mu": "auto", "lam": "auto"}),
    ("token", 32, {"row_budget": ROW_BUDGET}),
    ("logit", 32, {"row_budget": ROW_BUDGET}),
    ("logit", 32, {"row_budget": ROW_BUDGET, "mu": 1e-3, "lam": 10.0}),
)
"""Kinds of rows, up to how many prompts each is tried, and with which further options."""

_FIRST, _STEP = 8, 4  # prompts, and how many times as many follow

_RANK_SAMPLES = 256
_HELD = 8 << 30  # bytes of gradients that are held, where this is more than the library holds unasked


def growth(live: Live) -> Iterator[Row]:
    """Roll back with more and more prompts, by every kind of row, in two passes."""
    rank = effective_rank(live)
    parameters = live.delta.numel
    domains = len(live.scene.earlier) + len(live.scene.later)
    for kind, most, options in _KINDS:
        n = _FIRST
        while n <= min(most, live.study.samples):
            if 4 * n * domains * parameters > _HELD:
                break
            for row in by_passes(live, "growth", 2, n=n, rows=kind, **options):
                yield {**row, "value": rank}
            n *= _STEP


def effective_rank(live: Live) -> float:
    """Return the effective rank of the earlier domain's Gram matrix at the midpoint: how many directions count."""
    parameters = changed_parameters(live.model, live.delta)
    with moved(live.model, parameters, toward_before(live.delta, 0.5)):
        product = sample_gram(
            live.model,
            live.scene.earlier[0],
            samples=min(live.study.samples, _RANK_SAMPLES),
            block=64,
            seed=live.course.seed,
            tokenizer=live.tokenizer,
        )
    return GradientSpectrum.of(torch.linalg.eigvalsh(product).flip(0).clamp_min(0.0)).effective_rank


MEASURES = {"growth": growth}
