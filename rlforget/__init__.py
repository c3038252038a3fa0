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
        Fisher,
        KroneckerRule,
        MeasuredSubspace,
        Routes,
        SoftRule,
        combine_fishers,
        conflict,
        conflict_subspace,
        fewest,
        fisher,
        kronecker_rule,
        measure_subspace,
        routes,
        soft_rule,
    )
    from rlforget.recovery import Rollback, Search, auto_rollback, rollback
    from rlforget.weights import Weights, open_weights, save_checkpoint
    from rlforget.weights.in_place import undo

__version__ = "0.1.0"

_MODULES = ("circuits", "delta", "domains", "errors", "history", "interference", "recovery", "training", "weights")

_HOME = {
    "Conflict": "interference",
    "ConflictSubspace": "interference",
    "Coordinates": "interference",
    "Delta": "delta",
    "DeltaFile": "delta",
    "DeltaStats": "delta",
    "Fisher": "interference",
    "Geometry": "delta",
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
    "TensorDelta": "delta",
    "Weights": "weights",
    "apply": "delta",
    "auto_rollback": "recovery",
    "combine_fishers": "interference",
    "conflict": "interference",
    "conflict_subspace": "interference",
    "diff": "delta",
    "fewest": "interference",
    "fisher": "interference",
    "geometry": "delta",
    "kronecker_rule": "interference",
    "measure_subspace": "interference",
    "open_weights": "weights",
    "overlap": "delta",
    "revert": "delta",
    "rollback": "recovery",
    "routes": "interference",
    "save_checkpoint": "weights",
    "soft_rule": "interference",
    "undo": "weights.in_place",
    "write_diff": "delta",
}
"""{public name: the module of this package that it comes from}."""

__all__ = [
    "Conflict",
    "ConflictSubspace",
    "Coordinates",
    "Delta",
    "DeltaFile",
    "DeltaStats",
    "Fisher",
    "Geometry",
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
    "TensorDelta",
    "Weights",
    "__version__",
    "apply",
    "auto_rollback",
    "circuits",
    "combine_fishers",
    "conflict",
    "conflict_subspace",
    "delta",
    "diff",
    "domains",
    "errors",
    "fewest",
    "fisher",
    "geometry",
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
    "training",
    "undo",
    "weights",
    "write_diff",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        try:
            return importlib.import_module(f"rlforget.{name}")
        except ModuleNotFoundError as fault:
            if fault.name not in ("pydantic", "yaml"):
                raise
            from rlforget.errors import missing_extra

            raise missing_extra(fault.name, "train") from fault
    if name in _HOME:
        value = getattr(importlib.import_module(f"rlforget.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'rlforget' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
