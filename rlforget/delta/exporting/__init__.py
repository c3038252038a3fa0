"""Deltas for programs that know nothing of them: task vectors, low-rank adapters, mergekit models, plain tensors."""

from __future__ import annotations

from rlforget.delta.exporting.adapter import Adapter, export_lora
from rlforget.delta.exporting.coordinates import Coordinates, export_coordinates
from rlforget.delta.exporting.factors import Fit
from rlforget.delta.exporting.mergekit import MergekitModel, export_mergekit
from rlforget.delta.exporting.task_vector import TaskVector, export_task_vector

__all__ = [
    "Adapter",
    "Coordinates",
    "Fit",
    "MergekitModel",
    "TaskVector",
    "export_coordinates",
    "export_lora",
    "export_mergekit",
    "export_task_vector",
]
