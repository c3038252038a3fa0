"""rlforget: diff, blame and revert for the weights of fine-tuned language models.

    import rlforget as rf

    delta = rf.diff(before, after)
    with rf.rollback(model, delta, coordinates): ...

Names are imported when they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlforget import circuits, delta, domains, errors, history, interference, recovery, training, weights
    from rlforget.delta import (
        Delta,
        DeltaFile,
        DeltaStats,
        Geometry,
        Overlap,
        TensorDelta,
        apply,
        diff,
        export_coordinates,
        export_lora,
        export_mergekit,
        export_task_vector,
        geometry,
        overlap,
        revert,
        write_diff,
    )
    from rlforget.errors import RlforgetError
    from rlforget.history import History, Stage
    from rlforget.interference import (
        Conflict,
        ConflictSubspace,
        Coordinates,
        Damage,
        DamageCurve,
        Fisher,
        GradientAlignment,
        KroneckerRule,
        MeasuredSubspace,
        Routes,
        SoftRule,
        Synergy,
        combine_fishers,
        conflict,
        conflict_subspace,
        damage,
        damage_curve,
        fewest,
        fisher,
        gradient_alignment,
        kronecker_rule,
        measure_subspace,
        routes,
        soft_rule,
        synergy,
    )
    from rlforget.recovery import Rollback, Search, auto_rollback, rollback
    from rlforget.training import ForgettingMonitor, Tracker
    from rlforget.weights import Weights, open_weights, save_checkpoint
    from rlforget.weights.in_place import undo

__version__ = "0.1.0"

_MODULES = ("circuits", "delta", "domains", "errors", "history", "interference", "recovery", "training", "weights")

_HOME = {
    "Conflict": "interference",
    "ConflictSubspace": "interference",
    "Coordinates": "interference",
    "Damage": "interference",
    "DamageCurve": "interference",
    "Delta": "delta",
    "DeltaFile": "delta",
    "DeltaStats": "delta",
    "Fisher": "interference",
    "ForgettingMonitor": "training",
    "Geometry": "delta",
    "GradientAlignment": "interference",
    "History": "history",
    "KroneckerRule": "interference",
    "MeasuredSubspace": "interference",
    "Overlap": "delta",
    "RlforgetError": "errors",
    "Rollback": "recovery",
    "Routes": "interference",
    "Search": "recovery",
    "SoftRule": "interference",
    "Stage": "history",
    "Synergy": "interference",
    "TensorDelta": "delta",
    "Tracker": "training",
    "Weights": "weights",
    "apply": "delta",
    "auto_rollback": "recovery",
    "combine_fishers": "interference",
    "conflict": "interference",
    "conflict_subspace": "interference",
    "damage": "interference",
    "damage_curve": "interference",
    "diff": "delta",
    "export_coordinates": "delta",
    "export_lora": "delta",
    "export_mergekit": "delta",
    "export_task_vector": "delta",
    "fewest": "interference",
    "fisher": "interference",
    "geometry": "delta",
    "gradient_alignment": "interference",
    "kronecker_rule": "interference",
    "measure_subspace": "interference",
    "open_weights": "weights",
    "overlap": "delta",
    "revert": "delta",
    "rollback": "recovery",
    "routes": "interference",
    "save_checkpoint": "weights",
    "soft_rule": "interference",
    "synergy": "interference",
    "undo": "weights.in_place",
    "write_diff": "delta",
}
"""{public name: the module of this package that it comes from}."""

__all__ = [
    "Conflict",
    "ConflictSubspace",
    "Coordinates",
    "Damage",
    "DamageCurve",
    "Delta",
    "DeltaFile",
    "DeltaStats",
    "Fisher",
    "ForgettingMonitor",
    "Geometry",
    "GradientAlignment",
    "History",
    "KroneckerRule",
    "MeasuredSubspace",
    "Overlap",
    "RlforgetError",
    "Rollback",
    "Routes",
    "Search",
    "SoftRule",
    "Stage",
    "Synergy",
    "TensorDelta",
    "Tracker",
    "Weights",
    "__version__",
    "apply",
    "auto_rollback",
    "circuits",
    "combine_fishers",
    "conflict",
    "conflict_subspace",
    "damage",
    "damage_curve",
    "delta",
    "diff",
    "domains",
    "errors",
    "export_coordinates",
    "export_lora",
    "export_mergekit",
    "export_task_vector",
    "fewest",
    "fisher",
    "geometry",
    "gradient_alignment",
    "history",
    "interference",
    "kronecker_rule",
    "measure_subspace",
    "open_weights",
    "overlap",
    "recovery",
    "revert",
    "rollback",
    "routes",
    "save_checkpoint",
    "soft_rule",
    "synergy",
    "training",
    "undo",
    "weights",
    "write_diff",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"rlforget.{name}")
    if name in _HOME:
        value = getattr(importlib.import_module(f"rlforget.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'rlforget' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
