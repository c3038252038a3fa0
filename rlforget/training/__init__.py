"""Training: SFT and GRPO stages on TRL, sequences of them, and refreshes. TRL is imported when a stage starts."""

from __future__ import annotations

from rlforget.training.config import EvaluationConfig, LoraConfig, SequenceConfig, StageConfig
from rlforget.training.contraction import ConflictSpan, Contraction, contraction, following
from rlforget.training.live import replay
from rlforget.training.log import JsonLinesLog, Log
from rlforget.training.progress import Progress
from rlforget.training.protection import protecting
from rlforget.training.refresh import refresh
from rlforget.training.sequence import FinishedStage, SequenceResult, run_sequence
from rlforget.training.span import Span
from rlforget.training.stage import StageResult, train_stage
from rlforget.training.yaml_file import load_config

__all__ = [
    "ConflictSpan",
    "Contraction",
    "EvaluationConfig",
    "FinishedStage",
    "JsonLinesLog",
    "Log",
    "LoraConfig",
    "Progress",
    "SequenceConfig",
    "SequenceResult",
    "Span",
    "StageConfig",
    "StageResult",
    "contraction",
    "following",
    "load_config",
    "protecting",
    "refresh",
    "replay",
    "run_sequence",
    "train_stage",
]
