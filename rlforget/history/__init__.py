"""Histories: an append-only tree of stages, each kept as the change to its parent."""

from __future__ import annotations

from rlforget.history.history import History
from rlforget.history.stage import Stage

__all__ = ["History", "Stage"]
