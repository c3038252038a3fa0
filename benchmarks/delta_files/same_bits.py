"""Whether two folders hold the same tensors."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open


def same_bits(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    """Whether names, dtypes, shapes and bits are equal."""
    return found.keys() == expected.keys() and all(
        (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        and torch.equal(_bytes(found[name]), _bytes(tensor))
        for name, tensor in expected.items()
    )


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of all weight files of a folder, memory-mapped."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            found |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    return found
