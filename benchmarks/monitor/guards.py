"""What each guard keeps of an earlier domain, what it leaves of the later one's gain, and what a step with it takes."""

from __future__ import annotations

import copy
import statistics
from typing import Any

from scipy.stats import spearmanr

import rlforget as rf
from rlforget.domains import miniature
from rlforget.training import StageConfig, train_stage

GUARDS = (None, "surgery", "project", "fisher")


def measure(
    earlier: str, later: str, method: Any, steps: int, rate: float, seed: int, *, count: int = 256
) -> dict[str, Any]:
    """Train a domain and then another, with each guard from the same weights.

    Returns:
        By guard: the rewards of both domains before and after the later stage, KL and predicted damage at the end, and
        seconds a step; and how the unguarded run's predictions rank what was lost along it (Spearman).
    """
    start, tokenizer = miniature.load()
    prompts = 16 if method == "grpo" else 128  # 128 sequences a step
    first = StageConfig(domain=earlier, method=method, steps=60, prompts=prompts, learning_rate=1e-3)
    train_stage(start, tokenizer, first, seed=seed, progress=False)
    found: dict[str, Any] = {"earlier": earlier, "later": later, "method": method, "steps": steps, "rate": rate}
    found["seed"] = seed
    for guard in GUARDS:
        model = copy.deepcopy(start)
        every = max(steps // 12, 1)
        watched = {"every": every, "evaluate": [earlier, later], "evaluate_count": count, "seed": seed}
        monitor = rf.ForgettingMonitor(protect=[earlier], guard=guard, evaluate_every=every, **watched)
        stage = StageConfig(domain=later, method=method, steps=steps, prompts=prompts, learning_rate=rate)
        result = train_stage(model, tokenizer, stage, seed=seed + 1, progress=False, callbacks=[monitor])
        assert monitor.tracker is not None
        found[guard or "none"] = _row(monitor.tracker.measured, earlier, later) | {"stage_seconds": result.seconds}
        if guard is None:
            found["ranking"] = _ranking(monitor.tracker.measured, earlier)
    return found


def _row(measured: list[Any], earlier: str, later: str) -> dict[str, float]:
    begin, end = measured[0], measured[-1]
    return {
        "earlier_before": begin.rewards[earlier].mean,
        "earlier_after": end.rewards[earlier].mean,
        "later_before": begin.rewards[later].mean,
        "later_after": end.rewards[later].mean,
        "kl": end.divergence[earlier].mean,
        "damage": end.damage[earlier],
        "measurement_seconds": statistics.median(figures.seconds for figures in measured[1:]),
    }


def _ranking(measured: list[Any], earlier: str) -> dict[str, float]:
    """How predicted damage and KL rank the reward that was lost at each measurement."""
    lost = [measured[0].rewards[earlier].mean - figures.rewards[earlier].mean for figures in measured[1:]]
    damage = [figures.damage[earlier] for figures in measured[1:]]
    kl = [figures.divergence[earlier].mean for figures in measured[1:]]
    return {
        "damage_and_loss": float(spearmanr(damage, lost).statistic),
        "kl_and_loss": float(spearmanr(kl, lost).statistic),
        "damage_and_kl": float(spearmanr(damage, kl).statistic),
        "points": len(lost),
    }
