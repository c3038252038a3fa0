"""The weights that a run is compared with."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from rlforget.training.monitor.keeping import Keeper
from rlforget.training.monitor.trained import Line, Stretch, Trained
from rlforget.weights import Weights
from rlforget.weights.sharding import box_of, here
from rlforget_kernels.common.bits import as_bits


class Reference:
    """A copy of the trained parameters, in the order of `Trained`.

    Args:
        trained: The parameters.
        keeper: Where the copy goes.
        dtype: In which it is kept, rounded to nearest even; None: each parameter's own, and so its bits.
        weights: Where the values come from; None: the parameters as they are now.

    Raises:
        LayoutError: `weights` lacks a parameter, or has it in another shape.
    """

    def __init__(
        self, trained: Trained, keeper: Keeper, dtype: torch.dtype | None, weights: Weights | None = None
    ) -> None:
        self._trained = trained
        if weights is not None:
            _check(weights, trained)
        self._lines = [_copy(line, keeper, dtype, weights) for line in trained.lines]

    def stretches(self) -> Iterator[tuple[Stretch, Tensor, Tensor]]:
        """Yield each range with its values then and now: 1-D, of the reference's dtype, on the parameters' device."""
        for stretch in self._trained.stretches():
            kept, line = self._lines[stretch.line], self._trained.lines[stretch.line]
            then = kept[stretch.start : stretch.stop].to(line.device, non_blocking=True)
            yield stretch, then, self._trained.values(stretch).to(kept.dtype)


def _copy(line: Line, keeper: Keeper, dtype: torch.dtype | None, weights: Weights | None) -> Tensor:
    kept = keeper.empty(line.numel, dtype or line.dtype, line.device)
    for start, (name, parameter) in zip(line.starts, line.parameters.items(), strict=True):
        values = here(parameter) if weights is None else weights.block(name, box_of(parameter))
        into = kept[start : start + values.numel()]
        if values.dtype == into.dtype:  # of NaN payloads a conversion would not be sure to keep the bits
            into.view(as_bits(values).dtype).copy_(as_bits(values))
        else:
            into.copy_(values.reshape(-1))
    return kept


def _check(weights: Weights, trained: Trained) -> None:
    trained.check_shapes(weights.description, lambda name: tuple(weights.meta(name).shape) if name in weights else None)
