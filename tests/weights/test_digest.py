"""Fingerprints of whole sets of weights."""

from __future__ import annotations

import torch

from rlforget.weights import open_weights
from rlforget.weights.digest import all_lanes, lanes_of
from rlforget.weights.source import CHUNK
from rlforget_kernels.fingerprint import fingerprint


def test_tensors_that_share_a_range_or_take_several_have_the_fingerprints_they_have_alone() -> None:
    weights = {
        "small": torch.randn(5).bfloat16(),
        "empty": torch.empty(0, 3),
        "large": torch.randint(-128, 128, (CHUNK + 4097,), dtype=torch.int8),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
    }
    told: list[tuple[int, int]] = []
    found = all_lanes(open_weights(weights), list(weights), lambda done, total: told.append((done, total)))
    assert found == {name: tuple(fingerprint(tensor).tolist()) for name, tensor in weights.items()}
    assert found["large"] == lanes_of(open_weights(weights), "large")
    total = sum(tensor.numel() for tensor in weights.values())
    assert told[-1] == (total, total)
    assert told == sorted(set(told))
