"""The neurons that changed most. A neuron is an MLP channel, as in arXiv 2606.02398.

The edit of a neuron is that of its rows of the gate and up projections and its column of the down projection. How the
paper aggregates the three is not known; here it is the Euclidean norm (a reconstruction).
"""

from __future__ import annotations

import math
from collections import defaultdict

import torch

from rlforget.delta.delta import Delta
from rlforget.delta.tensor_delta import TensorDelta

# The projections into the channels (their rows are channels) and out of them (their columns are), as torch.nn.Linear
# stores them, by the last part of the module's name.
INTO = ("gate_proj", "up_proj", "gate_up_proj", "fc1", "fc_in", "w1", "w3", "dense_h_to_4h")
OUT_OF = ("down_proj", "fc2", "fc_out", "w2", "dense_4h_to_h")


def neuron_edits(delta: Delta) -> dict[str, torch.Tensor]:
    """Return the size of every neuron's edit.

    Args:
        delta: Any delta. Weights of MLPs whose channels cannot be told (packed experts of three dimensions, transposed
            convolutions) are left out.

    Returns:
        {name of the MLP: Euclidean norm of each channel's edit, 1-D float64; infinite where the edit is not finite}.
    """
    blocks: defaultdict[str, list[tuple[str, TensorDelta]]] = defaultdict(list)
    for name, tensor in delta.items():
        parts = name.split(".")
        if len(parts) > 1 and parts[-1] == "weight" and len(tensor.shape) == 2 and parts[-2] in (*INTO, *OUT_OF):
            blocks[".".join(parts[:-2])].append((parts[-2], tensor))
    edits = {}
    for block, members in blocks.items():
        widths = {tensor.shape[1] for part, tensor in members if part in OUT_OF}
        rows = [tensor.shape[0] for part, tensor in members if part in INTO]
        if len(widths) == 1 and rows and all(_fits(count, min(widths)) for count in rows):
            edits[block] = _norms(members, min(widths))
    return edits


def _fits(rows: int, channels: int) -> bool:
    return channels > 0 and rows % channels == 0


def _norms(members: list[tuple[str, TensorDelta]], channels: int) -> torch.Tensor:
    squares = torch.zeros(channels, dtype=torch.float64)
    for part, tensor in members:
        # Row-major flat index -> row or column. Packed gate and up rows follow one another: the row, modulo channels.
        position = tensor.indices.to(torch.int64)
        channel = (position if part in OUT_OF else position // tensor.shape[1]) % channels
        weight = tensor.values.to(torch.float64).square()
        squares += torch.bincount(channel, weights=weight, minlength=channels)
    return squares.nan_to_num(nan=math.inf, posinf=math.inf).sqrt()


def top_neurons(edits: dict[str, torch.Tensor], share: float = 0.1) -> torch.Tensor:
    """Say which neurons are among the most edited of the whole model.

    Args:
        edits: What `neuron_edits` returns.
        share: The share of all neurons to pick, rounded down but at least one. Ties go to the first ones. Neurons that
            did not change are never picked.

    Returns:
        1-D bool, over the MLPs one after another.
    """
    sizes = torch.cat([torch.empty(0, dtype=torch.float64), *edits.values()])
    picked = torch.zeros(sizes.shape, dtype=torch.bool)
    count = max(1, int(share * sizes.numel()))
    picked[sizes.sort(descending=True, stable=True).indices[:count]] = True
    return picked & (sizes > 0)
