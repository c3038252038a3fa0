"""Derivatives of log π(completion) along a change, of a model that is spread over ranks.

Gathering weights has no forward mode. Each rank takes the per-sample gradients of what it holds, and its part of their
products with δ; the sums over ranks are the derivatives.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from rlforget.interference.completions import Batch, check_finite
from rlforget.interference.sample_gradients import SampleGradients, columns_for, width
from rlforget.weights.ranks import summed

if TYPE_CHECKING:
    from rlforget.delta import Delta


def derivatives(
    model: nn.Module,
    delta: Delta,
    parameters: Mapping[str, nn.Parameter],
    groups: Mapping[str, int],
    batches: Iterator[Batch],
) -> Iterator[Tensor]:
    """Yield, of some completions at a time, the derivative of log π(completion | prompt) along each group's change.

    Every rank has to call this, with the same batches.

    Args:
        model: The model, where the derivatives are taken.
        delta: The change, sharded alike.
        parameters: Those that move, by the delta's names.
        groups: The number of each one's group, from 0 on.
        batches: `input_ids`, `attention_mask`, `labels` [B, T] each.

    Yields:
        float64 [groups, completions], on the CPU, the same on every rank.

    Raises:
        NonFiniteError: A log-probability or its derivative is NaN or infinite.
    """
    assert delta.sharding is not None
    columns = columns_for(parameters, {name: delta[name].indices for name in parameters}, delta.sharding)
    count = max(groups.values(), default=-1) + 1
    gradients = SampleGradients(model, columns)
    for batch in batches:
        if not columns:  # nothing moves
            yield torch.zeros(0, len(batch["input_ids"]), dtype=torch.float64)
            continue
        for chunk in gradients.chunks(batch):
            ids = chunk["input_ids"]
            rows = torch.empty(len(ids), width(columns), device=ids.device)
            check_finite(model, gradients.write(chunk, rows), "log π of a completion")
            found = torch.zeros(count, len(ids), dtype=torch.float64, device=ids.device)
            for name, column in columns.items():
                if name in delta.sharding.counted:
                    change = delta[name].values.to(rows.device, rows.dtype)
                    found[groups[name]] += (rows[:, column.span] * change).sum(1, dtype=torch.float64)
            total = summed(found)
            check_finite(model, total, "the derivative of log π")
            yield total.cpu()
