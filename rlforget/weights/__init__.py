"""Weights: named tensors, read lazily from checkpoint folders, `.safetensors` files, live modules or mappings."""

from __future__ import annotations

from rlforget.weights.layout import (
    DTYPES,
    Layout,
    Matching,
    Pair,
    TensorMeta,
    check_layout,
    match,
    merged_aliases,
    pair_up,
)
from rlforget.weights.opening import open_weights
from rlforget.weights.saving import save_checkpoint
from rlforget.weights.source import Weights, WeightsLike

__all__ = [
    "DTYPES",
    "Layout",
    "Matching",
    "Pair",
    "TensorMeta",
    "Weights",
    "WeightsLike",
    "check_layout",
    "match",
    "merged_aliases",
    "open_weights",
    "pair_up",
    "save_checkpoint",
]
