"""Circuits: the attention heads a task needs, and which of them a fine-tune broke."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from rlforget.circuits.circuit import Circuit
from rlforget.circuits.finding import find
from rlforget.circuits.heads import HeadSites
from rlforget.circuits.methods import METHODS
from rlforget.circuits.metrics import METRICS
from rlforget.circuits.task import Pair, Task, TaskBatch

if TYPE_CHECKING:
    from rlforget.circuits.changed_weights import head_changes
    from rlforget.circuits.comparison import compare, compare_circuits, over_bases
    from rlforget.circuits.judging import curve, evaluate_circuit
    from rlforget.circuits.minimality import minimal
    from rlforget.circuits.repeats import stability
    from rlforget.circuits.restoration import restoration_effect, restore
    from rlforget.circuits.roles import necessity, sufficiency
    from rlforget.circuits.trajectory import follow, trajectory_of_circuits

_HOME = {
    "compare": "comparison",
    "compare_circuits": "comparison",
    "curve": "judging",
    "evaluate_circuit": "judging",
    "follow": "trajectory",
    "head_changes": "changed_weights",
    "minimal": "minimality",
    "necessity": "roles",
    "over_bases": "comparison",
    "restoration_effect": "restoration",
    "restore": "restoration",
    "stability": "repeats",
    "sufficiency": "roles",
    "trajectory_of_circuits": "trajectory",
}
"""{public name: its module}, for those that are imported when they are first used."""

__all__ = [
    "METHODS",
    "METRICS",
    "Circuit",
    "HeadSites",
    "Pair",
    "Task",
    "TaskBatch",
    "compare",
    "compare_circuits",
    "curve",
    "evaluate_circuit",
    "find",
    "follow",
    "head_changes",
    "minimal",
    "necessity",
    "over_bases",
    "restoration_effect",
    "restore",
    "stability",
    "sufficiency",
    "trajectory_of_circuits",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(f"rlforget.circuits.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'rlforget.circuits' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
