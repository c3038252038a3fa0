"""A study of two domains and two steps a stage, and rows as a table of one would hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlforget.experiments.recovery_study import StudyConfig
from rlforget.experiments.recovery_study.scene import Row

TINY: dict[str, Any] = {
    "domains": ["math", "writing"],
    "pairs": [["math", "writing"]],
    "methods": {"grpo": {"earlier": {"steps": 1, "learning_rate": 1e-3}, "later": {"steps": 2, "learning_rate": 2e-3}}},
    "seeds": [3],
    "evaluation_prompts": 8,
    "samples": 6,
    "few": 4,
    "budgets": [0.02],
    "refresh_steps": [1, 2],
}


def tiny(**changes: Any) -> StudyConfig:
    return StudyConfig.model_validate({**TINY, **changes})


def row(rule: str, **fields: Any) -> Row:
    """A row of a pair that lost 0.4 and gained 0.5."""
    return {
        **dict.fromkeys(
            (
                "budget",
                "n",
                "rows",
                "passes",
                "steps",
                "strength",
                "dtype",
                "value",
                "predicted",
                "mu",
                "lam",
                "samples",
            )
        ),
        "base": "miniature",
        "size": "0.2M",
        "method": "grpo",
        "seed": 0,
        "part": "pairs",
        "measure": "made",
        "measure_seconds": 2.0,
        "earlier": "math",
        "later": "writing",
        "counts": True,
        "then": 0.9,
        "now": 0.5,
        "later_then": 0.4,
        "later_now": 0.9,
        "after": None,
        "later_after": None,
        "regained": None,
        "kept": None,
        "norm_share": 0.1,
        "rule": rule,
        **fields,
    }


def stamps(folder: Path) -> dict[Path, int]:
    """When each file that a resumed run must not write again was written."""
    return {
        path: path.stat().st_mtime_ns
        for path in folder.rglob("*")
        if path.suffix in (".jsonl", ".json", ".safetensors") and path.name not in ("log.jsonl", "study.json")
    }
