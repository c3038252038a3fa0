"""The run of a bare sequence, read as the report reads the demo's: rewards, deltas and overlaps, and no repairs."""

from __future__ import annotations

import math
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlforget.counting import counted
from rlforget.report.results import FORMAT, VERSION, Results, parse_results

if TYPE_CHECKING:
    from rlforget.training.run_folder import StageFolder

_OVERLAPS_UP_TO = 1 << 30  # bytes of delta files, which are then held in memory all at once
_SIGNIFICANT = 2.0  # standard errors that a fall has to be larger than, for a domain to count as one that lost
_TOLD = ("method", "steps", "learning_rate", "prompts", "samples", "beta", "stop_at_reward", "protect")


def is_sequence(run: Path) -> bool:
    """Whether a folder holds what `rlforget sequence` writes."""
    return any(run.glob("stages/*/stage.json"))


def read_sequence(run: Path) -> Results:
    """Read what a sequence kept, finished or not.

    A domain counts as lost where its reward fell, from its own last stage to the end, by more than twice the standard
    error of the difference; only in a sequence without branches.

    Raises:
        ReportError: A record is not what a sequence writes.
        ConfigError: A record cannot be read, or a stage is missing in the middle.
        DeltaFileError: A delta is damaged.
    """
    from rlforget.training.run_folder import RunFolder

    base, *stages = RunFolder(run).finished()
    told = _object(base.record.get("settings"))
    evaluation = _object(told.get("evaluation"))
    found = [_stage(one) for one in counted("stages", [base, *stages])]
    raw = {
        "format": FORMAT,
        "version": VERSION,
        "command": f"rlforget sequence CONFIG --out {shlex.quote(str(run))}",
        "settings": {**told, "evaluation_prompts": evaluation.get("count", "")},
        "runs": [
            {
                "seed": told.get("seed"),
                "base_weights": base.record.get("fingerprint"),
                "stages": found,
                "overlaps": _overlaps(stages),
                "lost": _lost(found, stages),
            }
        ],
    }
    return parse_results(raw, str(run))


def _stage(stage: StageFolder) -> dict[str, Any]:
    scores = {name: _object(one) for name, one in _object(stage.record.get("scores")).items()}
    config = _object(stage.record.get("config"))
    told = {
        "name": stage.name,
        "domain": config.get("domain"),
        "rewards": {name: one.get("mean") for name, one in scores.items()},
        "stderr": {name: one.get("stderr") for name, one in scores.items()},
        "config": ", ".join(f"{key} {config[key]}" for key in _TOLD if config.get(key) is not None),
    }
    if not stage.index:
        return {**told, "weights": stage.record.get("fingerprint")}
    delta = stage.delta()
    return {**told, "weights": delta.fingerprint_after, "delta": delta.stats().to_dict()}


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _overlaps(stages: list[StageFolder]) -> list[dict[str, Any]]:
    from rlforget.delta import overlap

    if sum(stage.delta_path.stat().st_size for stage in stages) > _OVERLAPS_UP_TO:
        return []
    deltas = [stage.delta() for stage in stages]
    pairs = [(i, j) for j in range(len(stages)) for i in range(j)]
    return [
        {"first": stages[i].name, "second": stages[j].name, **overlap(deltas[i], deltas[j]).to_dict()} for i, j in pairs
    ]


def _lost(found: list[dict[str, Any]], stages: list[StageFolder]) -> dict[str, float]:
    """What each earlier domain lost since its own last stage."""
    parents = [stage.record.get("parent") for stage in stages]
    if parents != [one["name"] for one in found[:-1]]:
        return {}
    last = {one["domain"]: one for one in found[1:-1] if one["domain"] != found[-1]["domain"]}
    lost = {}
    for domain, then in last.items():
        fall = _reward(then, "rewards", domain) - _reward(found[-1], "rewards", domain)
        error = math.hypot(_reward(then, "stderr", domain), _reward(found[-1], "stderr", domain))
        if fall > _SIGNIFICANT * error:
            lost[domain] = fall
    return lost


def _reward(stage: dict[str, Any], key: str, domain: str) -> float:
    value = stage[key].get(domain)
    return float(value) if isinstance(value, int | float) else math.nan
