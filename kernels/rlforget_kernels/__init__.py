"""Operators on the stored bits of weights: `torch.ops.rlforget.*`.

Importing the package registers every operator. Each lives in a folder of its own with its plain-torch truth
(`reference.py`) and its numba and Triton backends (`cpu.py`, `gpu.py`), which are imported when first used.
"""

from __future__ import annotations

import importlib

OPERATORS = (
    "sparse_delta",
    "delta_stats",
    "patch",
    "fingerprint",
    "fisher_accumulate",
    "conflict_score",
    "select_top",
    "rollback",
    "subtract",
    "delta_matmul",
    "project",
    "project_sparse",
    "project_rollback",
    "gradient_gram",
)
"""The operators' packages."""

for _name in OPERATORS:
    importlib.import_module(f"{__name__}.{_name}")
