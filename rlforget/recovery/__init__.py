"""Recovery: putting chosen coordinates or directions back, without training, and undoing that."""

from __future__ import annotations

from rlforget.recovery.in_place import rollback
from rlforget.recovery.search import Search, Trial, auto_rollback
from rlforget.recovery.undo import Rollback, RollbackReport

__all__ = ["Rollback", "RollbackReport", "Search", "Trial", "auto_rollback", "rollback"]
