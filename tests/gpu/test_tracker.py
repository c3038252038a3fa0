"""The tracker beside a model on a device: the same figures as on the CPU, and no more memory at the peak."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import rlforget as rf

pytestmark = pytest.mark.gpu

WIDTH = 1024


class Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(8)))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.layers(inputs)


def run(model: Chain, keep: Any, steps: int = 4) -> tuple[Any, int]:
    """Train; returns the tracker's measurements and the peak of the device's memory."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    inputs = torch.ones(4096, WIDTH, dtype=next(model.parameters()).dtype, device="cuda")
    torch.cuda.reset_peak_memory_stats()
    tracker = None if keep is None else rf.Tracker(model, optimizer, every=2, keep=keep)
    for _ in range(steps):
        model(inputs).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    peak = torch.cuda.max_memory_allocated()
    return ([] if tracker is None else tracker.measured), peak


@pytest.mark.parametrize("keep", ["device", "memory", "disk"])
def test_figures_are_those_of_a_diff(keep: str) -> None:
    model = Chain().bfloat16().cuda()
    start = copy.deepcopy(model)
    measured, _ = run(model, keep)
    expected = rf.diff(start, model).stats().total
    assert (measured[-1].change.changed, measured[-1].change.steps) == (expected.changed, expected.steps)


def test_memory_at_the_peak_grows_by_the_reference_alone() -> None:
    peaks = {}
    for keep in (None, "memory", "disk", "device"):
        model = Chain().bfloat16().cuda()
        size = sum(p.numel() * p.element_size() for p in model.parameters())
        peaks[keep] = run(model, keep)[1]
        del model
        torch.cuda.empty_cache()
    assert peaks["memory"] == peaks["disk"] == peaks[None]
    assert peaks["device"] <= peaks[None] + size
