"""The recovery study: every pair of domains and a full sequence, every rule and control, from one configuration."""

from __future__ import annotations

from rlforget.experiments.recovery_study.config import StudyConfig, load_study
from rlforget.experiments.recovery_study.study import plan_of, run_study

__all__ = ["StudyConfig", "load_study", "plan_of", "run_study"]
