"""Small pairs of checkpoints, each with one kind of value that is easily lost on the way through a delta."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor


def _bits(dtype: torch.dtype, words: list[int]) -> Tensor:
    data = b"".join(word.to_bytes(dtype.itemsize, "little") for word in words)
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).view(dtype)


def _bf16(*words: int) -> Tensor:
    return _bits(torch.bfloat16, list(words))


CASES: dict[str, tuple[Tensor | None, Tensor | None]] = {
    "0.0 to −0.0": (_bf16(0x0000, 0x3F80), _bf16(0x8000, 0x3F80)),
    "NaN to a NaN of another payload": (_bf16(0x7FC0, 0x3F80), _bf16(0x7FC1, 0x3F80)),
    "a NaN that stays": (_bf16(0x7FC1, 0x3F80), _bf16(0x7FC1, 0x3F81)),
    "number to infinity": (_bf16(0x3F80, 0x3F80), _bf16(0x7F80, 0x3F80)),
    "denormals": (_bf16(0x0001, 0x3F80), _bf16(0x0002, 0x3F80)),
    "1.0 to 1e-30": (_bf16(0x3F80, 0x3F80), _bf16(0x0DA2, 0x3F80)),
    "1e30 to 1.0": (_bf16(0x7149, 0x3F80), _bf16(0x3F80, 0x3F80)),
    "float16": (_bits(torch.float16, [0x0001, 0x3C00]), _bits(torch.float16, [0x8001, 0x3C00])),
    "float8_e4m3fn": (_bits(torch.float8_e4m3fn, [0x38, 0x30]), _bits(torch.float8_e4m3fn, [0x39, 0x30])),
    "float64": (_bits(torch.float64, [0x3FF0000000000000]), _bits(torch.float64, [0x3FF0000000000001])),
    "int64 above 2⁵³": (torch.tensor([2**53, 1]), torch.tensor([2**53 + 1, 1])),
    "bool": (torch.tensor([True, False]), torch.tensor([False, False])),
    "0-d and empty": (torch.tensor(1.0), torch.tensor(2.0)),
    "resized": (torch.ones(4, 2), torch.ones(6, 2)),
    "bfloat16 to float32": (torch.ones(4).bfloat16(), torch.ones(4)),
    "a tensor added": (None, torch.ones(2)),
    "a tensor removed": (torch.ones(2), None),
}
"""The one tensor of each pair, before and after; None where it is only on one side."""


def write_case(folder: Path, case: str) -> tuple[Path, Path]:
    """Write `folder/before` and `folder/after`, with an unchanged tensor beside the one that the case is about."""
    sides = []
    for side, tensor in zip(("before", "after"), CASES[case], strict=True):
        tensors = {"same": torch.arange(8.0).bfloat16()} | ({} if tensor is None else {"case": tensor})
        if case == "0-d and empty":
            tensors["empty"] = torch.empty(0, 4)
        (folder / side).mkdir()
        save_file(tensors, folder / side / "model.safetensors")
        sides.append(folder / side)
    return sides[0], sides[1]
