"""Means over seeds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def summarise(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Average what `main_job` returned for several seeds.

    Returns:
        `lost`: by earlier domain, mean and values; `repairs`: for each rule and fraction, mean and values of
        `regained`, `kept` and `norm_share`; `sft_and_rl`: for each of the two, mean and values of `forgotten`, and of
        the target's reward.
    """
    repairs = []
    for position, first in enumerate(runs[0]["repairs"]):
        same = [run["repairs"][position] for run in runs]
        figures = {key: _spread(r[key] for r in same) for key in ("regained", "kept", "norm_share")}
        repairs.append({"rule": first["rule"], "fraction": first["fraction"], **figures})
    target = runs[0]["sft_and_rl"]["target"]
    return {
        "seeds": [run["seed"] for run in runs],
        "lost": {name: _spread(run["lost"][name] for run in runs) for name in runs[0]["lost"]},
        "repairs": repairs,
        "sft_and_rl": {
            method: {
                "reward": _spread(run["sft_and_rl"][method]["rewards"][target] for run in runs),
                "forgotten": _spread(run["sft_and_rl"][method]["forgotten"] for run in runs),
                "sparsity_bfloat16": _spread(run["sft_and_rl"][method]["sparsity"]["bfloat16"] for run in runs),
            }
            for method in ("grpo", "sft")
        },
    }


def _spread(values: Iterable[float]) -> dict[str, Any]:
    taken = [float(value) for value in values]
    return {"mean": sum(taken) / len(taken), "values": taken}
