"""The monitor: what a run changes and what that costs earlier domains, measured while it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rlforget.training.monitor.figures import Figures
from rlforget.training.monitor.settings import MonitorSettings
from rlforget.training.monitor.tracker import Tracker

if TYPE_CHECKING:
    from rlforget.training.monitor.callback import ForgettingMonitor

__all__ = ["Figures", "ForgettingMonitor", "MonitorSettings", "Tracker"]


def __getattr__(name: str) -> Any:
    if name == "ForgettingMonitor":  # a subclass of transformers' callback, and so as heavy as transformers
        from rlforget.training.monitor.callback import ForgettingMonitor

        return ForgettingMonitor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
