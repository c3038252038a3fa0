"""Training: SFT and GRPO stages on TRL, sequences of them, refreshes, and the monitor of a run.

Names are imported when they are first used: the monitor of a plain loop needs neither TRL nor pydantic.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlforget.training.config import DomainConfig, EvaluationConfig, LoraConfig, SequenceConfig, StageConfig
    from rlforget.training.contracting import ConflictSpan, Contraction, contraction, following
    from rlforget.training.live import replay
    from rlforget.training.log import JsonLinesLog, Log
    from rlforget.training.monitor import Figures, ForgettingMonitor, MonitorSettings, Tracker
    from rlforget.training.progress import Progress
    from rlforget.training.protection import protecting
    from rlforget.training.refreshing import refresh
    from rlforget.training.sequence import FinishedStage, SequenceResult, run_sequence
    from rlforget.training.span import Span
    from rlforget.training.stage import StageResult, train_stage
    from rlforget.training.yaml_file import load_config

_HOME = {
    "ConflictSpan": "contracting",
    "Contraction": "contracting",
    "DomainConfig": "config",
    "EvaluationConfig": "config",
    "Figures": "monitor",
    "FinishedStage": "sequence",
    "ForgettingMonitor": "monitor",
    "JsonLinesLog": "log",
    "Log": "log",
    "LoraConfig": "config",
    "MonitorSettings": "monitor",
    "Progress": "progress",
    "SequenceConfig": "config",
    "SequenceResult": "sequence",
    "Span": "span",
    "StageConfig": "config",
    "StageResult": "stage",
    "Tracker": "monitor",
    "contraction": "contracting",
    "following": "contracting",
    "load_config": "yaml_file",
    "protecting": "protection",
    "refresh": "refreshing",
    "replay": "live",
    "run_sequence": "sequence",
    "train_stage": "stage",
}
"""{public name: the module of this package that it comes from}."""

__all__ = [
    "ConflictSpan",
    "Contraction",
    "DomainConfig",
    "EvaluationConfig",
    "Figures",
    "FinishedStage",
    "ForgettingMonitor",
    "JsonLinesLog",
    "Log",
    "LoraConfig",
    "MonitorSettings",
    "Progress",
    "SequenceConfig",
    "SequenceResult",
    "Span",
    "StageConfig",
    "StageResult",
    "Tracker",
    "contraction",
    "following",
    "load_config",
    "protecting",
    "refresh",
    "replay",
    "run_sequence",
    "train_stage",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(f"rlforget.training.{_HOME[name]}"), name)
    except ModuleNotFoundError as fault:
        if fault.name not in ("pydantic", "yaml", "transformers"):
            raise
        from rlforget.errors import missing_extra

        raise missing_extra({"yaml": "pyyaml"}.get(fault.name, fault.name), "train") from fault
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
