"""What the tuner measures: an operator on scratch tensors, in the launch settings that it could have."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from rlforget_kernels.common.settings import Setting, Settings

Trial = Callable[[int, int, torch.device], Callable[[], object]]
"""(element size, elements, device) -> a call to time, on tensors of its own, that bears being repeated.

It returns what it made or wrote."""


@dataclass(frozen=True)
class Tunable:
    """An operator, or one kernel of it, whose launch settings can be chosen. A `gpu.py` lists its own in `TUNABLE`.

    Attributes:
        settings: Its rows of the table.
        trial: Makes what is timed. It never touches a caller's tensors: many settings are tried, in place or not.
        sizes: Element sizes that it takes.
        loads: Loads of 16 bytes a thread to try, where an element is of `sizes` bytes.
        warps: Warps a program to try.
        stages: Pipeline stages to try; more than one only helps loops.
        most: Elements that a program can take, where that is bounded.
    """

    settings: Settings
    trial: Trial
    sizes: Sequence[int] = (1, 2, 4, 8)
    loads: Sequence[int] = (1, 2, 4, 8)
    warps: Sequence[int] = (2, 4, 8)
    stages: Sequence[int] = (3,)
    most: int | None = None

    def candidates(self, size: int) -> list[Setting]:
        """Return the settings to try for elements of `size` bytes."""
        shapes = itertools.product(self.loads, self.warps, self.stages)
        found = [Setting(warps * 32 * (16 // size) * loads, warps, stages) for loads, warps, stages in shapes]
        return [setting for setting in found if self.most is None or setting.block <= self.most]
