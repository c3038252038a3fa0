"""How many elements, warps and pipeline stages a program of a kernel gets: a committed table, filled by a tuner.

The table is `launch_settings.json`: {operator: {architecture: {element size: {block, warps, stages}}}}, the
architecture a compute capability times ten, or 0 for what serves where nothing was measured.
`python -m rlforget_kernels.tune` measures on a device and rewrites its rows. No setting changes a result: the operators
in the table give the same bits for every launch shape. Products of matrices are not in it, for there the sizes of tiles
say in what order numbers are added: `delta_matmul`, `project`, `project_sparse`, `project_rollback_` and
`gradient_gram_` have fixed ones.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

TABLE = Path(__file__).with_name("launch_settings.json")
WARPS = 4
STAGES = 3
LOADS = 4
"""Loads of 16 bytes that a thread starts with nothing measured: what keeps enough of them in flight."""

Rows = dict[str, dict[str, dict[str, dict[str, int]]]]


@dataclass(frozen=True)
class Setting:
    """How a kernel is launched.

    Attributes:
        block: Elements a program.
        warps: Warps a program.
        stages: Loads that the compiler may start ahead in a loop.
    """

    block: int
    warps: int = WARPS
    stages: int = STAGES

    @property
    def launched(self) -> dict[str, int]:
        """What a kernel is launched with."""
        return {"BLOCK": self.block, "warps": self.warps, "stages": self.stages}


def untuned(size: int) -> Setting:
    """Return the setting where nothing was measured, for elements of `size` bytes."""
    return Setting(WARPS * 32 * (16 // size) * LOADS)


class Settings:
    """The settings of one operator.

    Args:
        operator: Its name in the table.
    """

    def __init__(self, operator: str) -> None:
        self.operator = operator
        self._forced: dict[int, Setting] = {}

    def at(self, size: int, architecture: int | None) -> Setting:
        """Return the setting for elements of `size` bytes.

        Args:
            size: Bytes an element.
            architecture: Compute capability times ten; of one that the table does not have, the nearest older one
                serves. None for what is no GPU.
        """
        if size in self._forced:
            return self._forced[size]
        rows = table().get(self.operator, {})
        older = sorted((int(known) for known in rows if int(known) <= (architecture or 0)), reverse=True)
        found = (rows[str(known)].get(str(size)) for known in older)
        row = next(filter(None, found), None)
        return Setting(**row) if row else untuned(size)

    def on(self, tensor: Tensor) -> Setting:
        """Return the setting for a tensor's element size and device."""
        return self.at(tensor.element_size(), architecture_of(tensor.device))

    def blocks(self, device: torch.device) -> Mapping[int, int]:
        """Return the elements a program takes, by element size, on a device."""
        return {size: self.at(size, architecture_of(device)).block for size in (1, 2, 4, 8)}

    @contextlib.contextmanager
    def forced(self, size: int, setting: Setting) -> Iterator[None]:
        """Use `setting` for elements of `size` bytes, whatever the table says: to measure it."""
        self._forced[size] = setting
        try:
            yield
        finally:
            del self._forced[size]


@functools.cache
def table() -> Rows:
    """Read the committed table."""
    rows: Rows = json.loads(TABLE.read_text(encoding="utf-8"))
    return rows


@functools.cache
def architecture_of(device: torch.device) -> int | None:
    """Return a GPU's compute capability times ten, None for another device."""
    if device.type != "cuda":
        return None
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor
