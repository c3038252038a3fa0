"""Peak memory of a call."""

from __future__ import annotations

import ctypes
import gc
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

_STATUS = Path("/proc/self/status")


class Peak(NamedTuple):
    """The peak of memory during a call, in bytes.

    Attributes:
        whole: All that was held, also before the call.
        extra: Beyond what was held before, and beyond the tensors that the call returned.
    """

    whole: int
    extra: int


def peak_of(function: Callable[[], object], device: torch.device) -> Peak | None:
    """Measure the peak of memory during a call.

    On a GPU by torch's allocator. On a CPU by the process's resident memory, which rises by whole pages and by what
    allocators keep: good to about a MiB. None where the kernel does not tell.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        returned = bytes_of(function())
        whole = torch.cuda.max_memory_allocated(device)
    elif sys.platform.startswith("linux"):
        ctypes.CDLL(None).malloc_trim(0)  # else a call reuses pages that an earlier one left, and seems to need none
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
        before = resident("VmRSS")
        returned = bytes_of(function())
        whole = resident("VmHWM")
    else:
        return None
    return Peak(whole, max(0, whole - before - returned))


def peak_extra(function: Callable[[], object], device: torch.device) -> int | None:
    """Return what `peak_of` calls extra."""
    found = peak_of(function, device)
    return None if found is None else found.extra


def bytes_of(result: object) -> int:
    """Bytes of the tensors in what a call returned, those on one storage counted once."""
    return sum(
        storage
        for storage in {tensor.untyped_storage().data_ptr(): _size(tensor) for tensor in _tensors(result)}.values()
    )


def _size(tensor: Tensor) -> int:
    return tensor.untyped_storage().nbytes()


def _tensors(result: object) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, (list, tuple)):
        return [tensor for part in result for tensor in _tensors(part)]
    return []


def resident(name: str) -> int:
    """Read a field of the process's memory, `VmRSS` or its high-water mark `VmHWM`, in bytes."""
    found = re.search(rf"^{name}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    assert found is not None
    return 1024 * int(found.group(1))
