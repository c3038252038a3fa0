"""Deltas: what changed between two sets of weights, its file, its statistics, and how to apply and revert it."""

from __future__ import annotations

from rlforget.delta.compare import diff
from rlforget.delta.delta import Delta
from rlforget.delta.exporting import export_coordinates, export_lora, export_mergekit, export_task_vector
from rlforget.delta.file import DeltaFile
from rlforget.delta.overlaps import Overlap, SetOverlap, overlap
from rlforget.delta.patching import apply, revert
from rlforget.delta.stats import Change, DeltaStats
from rlforget.delta.streaming import measure_diff, write_diff
from rlforget.delta.tensor_delta import TensorDelta
from rlforget.delta.update_geometry import Geometry, MatrixGeometry, geometry
from rlforget.delta.whole import FileDelta, WholeDelta

__all__ = [
    "Change",
    "Delta",
    "DeltaFile",
    "DeltaStats",
    "FileDelta",
    "Geometry",
    "MatrixGeometry",
    "Overlap",
    "SetOverlap",
    "TensorDelta",
    "WholeDelta",
    "apply",
    "diff",
    "export_coordinates",
    "export_lora",
    "export_mergekit",
    "export_task_vector",
    "geometry",
    "measure_diff",
    "overlap",
    "revert",
    "write_diff",
]
