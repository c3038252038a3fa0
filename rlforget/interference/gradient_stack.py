"""The stack W = [G_A; √λ G_B] of gradients that the conflict subspace is solved in, filled in place."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rlforget.errors import NonFiniteError
from rlforget.interference.completions import Batch, completed
from rlforget.interference.point import moved
from rlforget.interference.sample_gradients import Column, SampleGradients, width
from rlforget_kernels.common.arithmetic import widened


class GradientStack:
    """Gradients of log π(completion | prompt), one row a completion, over the root of its domain's count.

    Args:
        model: The model, at the weights called now.
        columns: Where each parameter's gradient stands in a row, whole.
        restore: For each domain to restore, its batches.
        protect: For each domain to protect, likewise.
        lam: Weight λ of the protected domains.
        seed: Seed of the completions.
        tokenizer: Names the padding and the end token.

    Attributes:
        rows: float32 [restored + protected completions, width], on the model's device.
        restoring: How many of the rows belong to G_A; they come first.
    """

    def __init__(
        self,
        model: nn.Module,
        columns: Mapping[str, Column],
        restore: list[list[Batch]],
        protect: list[list[Batch]],
        *,
        lam: float,
        seed: int,
        tokenizer: Any,
    ) -> None:
        self._model, self._columns, self._lam = model, columns, lam
        self._restore, self._protect = restore, protect
        self._seed, self._tokenizer = seed, tokenizer
        self._gradients = SampleGradients(model, columns)
        self.restoring = sum(map(_count, restore))
        height = self.restoring + sum(map(_count, protect))
        self.rows = torch.empty(height, width(columns), device=next(model.parameters()).device)

    def fill(self, change: Tensor, correction: Tensor) -> None:
        """Take the gradients for a correction of what `correction` leaves of `change`.

        G_A at the midpoint before + (δ − correction)/2, G_B at now − correction. The model's bits are put back.

        Args:
            change: δ, float32 [width].
            correction: What earlier passes took off, float32 [width].

        Raises:
            NonFiniteError: A gradient is NaN or infinite; the message names the tensor.
        """
        self._fill(0, self._restore, 1.0, (change + correction) / 2)
        self._fill(self.restoring, self._protect, math.sqrt(self._lam), correction)

    def _fill(self, start: int, domains: list[list[Batch]], weight: float, shift: Tensor) -> None:
        """Write the rows of `domains`, with the model at now − `shift`."""

        def shifted(name: str, now: Tensor) -> Tensor:
            return (widened(now) - shift[self._columns[name].span].view(now.shape)).to(now.dtype)

        with moved({name: column.parameter for name, column in self._columns.items()}, shifted):
            for batches in domains:
                stop = start + _count(batches)
                self._write(batches, self.rows[start:stop])
                self.rows[start:stop] *= weight / math.sqrt(stop - start)
                start = stop

    def _write(self, batches: list[Batch], rows: Tensor) -> None:
        start = 0
        for batch in completed(self._model, batches, seed=self._seed, tokenizer=self._tokenizer):
            for chunk in self._gradients.chunks(batch):
                stop = start + chunk["input_ids"].shape[0]
                self._gradients.write(chunk, rows[start:stop])
                self._check_finite(rows[start:stop])
                start = stop

    def _check_finite(self, rows: Tensor) -> None:
        if all(bool(extreme.isfinite()) for extreme in rows.aminmax()):  # a NaN is both the least and the largest
            return
        for name, column in self._columns.items():
            wrong = int((~rows[:, column.span].isfinite()).sum())
            if wrong:
                raise NonFiniteError(
                    f"the gradient of {name!r}",
                    expected="finite numbers",
                    found=f"NaN or Inf in {wrong} entries",
                    fix="Look for NaN or Inf in the weights on either side of the delta.",
                )


def _count(batches: list[Batch]) -> int:
    return sum(int(batch["input_ids"].shape[0]) for batch in batches)
