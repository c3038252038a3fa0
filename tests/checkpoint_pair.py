"""A pair of checkpoints under the names that the README and the examples use."""

from __future__ import annotations

from pathlib import Path

import torch

from rlforget.domains import miniature


def write_pair(folder: Path) -> None:
    """Write `checkpoints/math`, the miniature, and `checkpoints/writing`, the same a small step on."""
    model, tokenizer = miniature.load()
    generator = torch.Generator().manual_seed(0)
    for name in ("math", "writing"):
        model.save_pretrained(folder / "checkpoints" / name)
        tokenizer.save_pretrained(folder / "checkpoints" / name)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.01 * torch.randn(parameter.shape, generator=generator)
