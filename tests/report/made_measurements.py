"""What `rlforget damage --json` and `rlforget conflict --json` print, made in a moment from real records."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rlforget.interference.measured_subspace import CurvePoint
from rlforget.interference.predicted_damage import Damage, DamagePart

TENSORS = {f"model.layers.{layer}.{part}.weight": 0.1 * (layer + 1) for layer in range(3) for part in ("q", "mlp.up")}


def made_damage() -> dict[str, Any]:
    """One domain, by tensor."""
    parts = {name: _part(value) for name, value in TENSORS.items()}
    predicted = Damage(0.2, 0.01, 0.6, 0.02, 0.8, 0.03, 64, "ggn", (0.0,), (0.6,), "tensor", parts)
    t = [0.0, 0.5, 1.0]
    measured = {
        "t": t,
        "rise": [0.0, 0.24, 0.83],
        "rise_stderr": [0.0, 0.01, 0.04],
        "kl": [{"mean": 0.25 * one, "stderr": 0.01} for one in t],
        "count": 64,
    }
    return {"domains": {"math": {"predicted": predicted.to_dict(), "measured": measured}}, "plot": None}


def _part(value: float) -> DamagePart:
    known = dict.fromkeys(("first", "first_stderr", "second", "second_stderr", "row_sum", "row_sum_stderr"), 0.01)
    return DamagePart(**(known | {"row_sum": value}))


def made_conflict() -> dict[str, Any]:
    """The part `subspace`."""
    curves = {
        name: [asdict(CurvePoint(count, share * (1 - 0.5**count), 0.01, 0.1)) for count in (1, 2, 4, 8)]
        for name, share in (("by_share", 1.0), ("by_eigenvalue", 0.8), ("random", 0.02))
    }
    needed = {"share": 4, "eigenvalue": None}
    return {"changed": 10, "numel": 20, "samples": 64, "subspace": {**curves, "directions_for_90_percent": needed}}
