"""A comparison of circuits as one JSON file: what `rlforget circuits compare` writes and the report shows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlforget.circuits.changed_weights import ChangedWeights
    from rlforget.circuits.comparison import Comparison
    from rlforget.circuits.trajectory import Trajectory

CIRCUITS_FILE = "circuits.json"
"""What the file is called in a run's folder."""

FORMAT = "rlforget-circuits"
VERSION = 1


def record(
    task: str,
    comparison: Comparison,
    trajectories: Mapping[str, Trajectory] | None = None,
    weights: Mapping[str, ChangedWeights] | None = None,
) -> dict[str, Any]:
    """Gather a comparison, and the trajectories that belong to it, as plain JSON values.

    The circuits' scores of every prompt, which would be most of the file, are left out. Numbers that JSON lacks are
    None.

    Args:
        task: What the task is called.
        comparison: The fine-tunes against their base.
        trajectories: For each fine-tune that has one, its checkpoints.
        weights: What the deltas did to vulnerable heads, by what these are.
    """
    compared = comparison.to_dict()
    circuits = [compared["base"], *(one for runs in compared["tuned"].values() for one in runs)]
    for circuit in circuits:
        circuit["per_prompt"] = None
        circuit["metric"] = {name: value for name, value in circuit["metric"].items() if name != "per_prompt"}
    along = {name: one.to_dict() for name, one in (trajectories or {}).items()}
    changed = {name: one.to_dict() for name, one in (weights or {}).items()}
    head = {"format": FORMAT, "version": VERSION, "task": task}
    plain: dict[str, Any] = _plain({**head, "comparison": compared, "trajectories": along, "weights": changed})
    return plain


def _plain(value: Any) -> Any:
    """Replace numbers that JSON lacks."""
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
