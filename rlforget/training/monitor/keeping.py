"""Where a monitor keeps what it compares with: on the device, in main memory, or on disk."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from rlforget.errors import OutputError, UnknownNameError

Keep = Literal["device", "memory", "disk"]


class Keeper:
    """Makes tensors that stay for as long as they are referred to.

    Args:
        keep: `device`: beside the parameters. `memory`: main memory, pinned where the parameters are on a GPU, so that
            reading it is one copy. `disk`: a memory-mapped file that vanishes with the process; the operating system
            holds in memory what it has room for.
        folder: Where those files are; None: the system's folder for temporary ones.

    Raises:
        UnknownNameError: There is no such place.
    """

    def __init__(self, keep: Keep, folder: str | os.PathLike[str] | None = None) -> None:
        if keep not in get_args(Keep):
            raise UnknownNameError(
                f"keep {keep!r}", expected=f"one of {', '.join(get_args(Keep))}", found=repr(keep), fix="Choose one."
            )
        self._keep, self._folder = keep, folder

    def empty(self, numel: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return a tensor to be filled: 1-D.

        Raises:
            OutputError: The disk has no room for it, or the folder cannot be written.
        """
        if self._keep == "device":
            return torch.empty(numel, dtype=dtype, device=device)
        if self._keep == "memory" or numel == 0:
            return torch.empty(numel, dtype=dtype, pin_memory=device.type == "cuda")
        return self._mapped(numel, dtype)

    def _mapped(self, numel: int, dtype: torch.dtype) -> Tensor:
        try:
            handle, path = tempfile.mkstemp(prefix="rlforget-monitor-", dir=self._folder)
            try:
                if hasattr(os, "posix_fallocate"):  # not on macOS
                    # Room for all of it now: a mapped file that meets a full disk later ends the process by SIGBUS.
                    os.posix_fallocate(handle, 0, numel * dtype.itemsize)
                return torch.from_file(path, shared=True, size=numel, dtype=dtype)
            finally:
                os.close(handle)
                Path(path).unlink()  # the mapping holds the file
        except OSError as fault:
            raise OutputError(
                str(self._folder or tempfile.gettempdir()),
                expected=f"a folder with room for {numel * dtype.itemsize / 1e9:.3g} GB",
                found=str(fault),
                fix="Choose another folder, or keep in memory.",
            ) from fault
