"""The plain form: the stack W = [G_A; G_B] of gradients that the conflict subspace is solved in, held whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rlforget.counting import counted
from rlforget.errors import NonFiniteError
from rlforget.interference import sample_space
from rlforget.interference.linearisation import Directions, Linearisation
from rlforget.interference.rows import Rows, count, total
from rlforget.interference.sample_gradients import SampleGradients, width
from rlforget.weights.ranks import summed


class GradientStack:
    """Rows that are held: 4 bytes × rows × entries.

    Of a model that is spread over ranks each holds its columns of them, and they add up products of rows, n × n.

    Args:
        rows: float32 [n, N], G_A's first.
        restoring: How many of them are of each side of G_A.
        spread: Whether other ranks hold other columns.
        counted: Which columns this rank counts, bools [N]; None: all.
    """

    def __init__(self, rows: Tensor, *restoring: int, spread: bool = False, counted: Tensor | None = None) -> None:
        self.rows, self._restoring, self._spread = rows, restoring, spread
        # Copies of columns that another rank counts: there are few, of what is too small to be split.
        self._copies = None if counted is None else (~counted).nonzero().flatten().to(rows.device)

    @classmethod
    def of(cls, linearisation: Linearisation, *, into: Tensor | None = None) -> GradientStack:
        """Take the gradients. The model's bits are put back.

        Args:
            linearisation: The rows and their points.
            into: float32 [n, N] to overwrite, of an earlier pass; ignored where its shape does not fit.

        Raises:
            NonFiniteError: A gradient is NaN or infinite; the message names the tensor.
        """
        source = linearisation.sources
        heights = [total(side.rows) for side in linearisation.sides]
        shape = (sum(heights), width(source.columns))
        rows = into
        if rows is None or tuple(rows.shape) != shape:
            rows = torch.empty(shape, device=next(source.model.parameters()).device)
        writer = _Writer(linearisation)
        for side, part in zip(linearisation.sides, torch.split(rows, heights), strict=True):
            with linearisation.at(side):
                writer.write(side.rows, part)
        spread = source.sharding is not None
        return cls(rows, *heights[:-1], spread=spread, counted=source.counted())

    @classmethod
    def random(cls, count: int, like: Tensor, seed: int) -> GradientStack:
        """Return the control: random directions, nearly of unit length, the same on every device.

        Args:
            count: How many.
            like: [N], on the device to use.
            seed: Seed of the draw.
        """
        generator = torch.Generator().manual_seed(seed)
        rows = torch.empty(count, like.numel(), device=like.device)
        for row in rows:
            row.copy_(torch.randn(like.numel(), generator=generator))
        rows /= like.numel() ** 0.5
        return cls(rows, count)

    @property
    def device(self) -> torch.device:
        """Where vectors over the weights are: beside the rows."""
        return self.rows.device

    @property
    def restoring(self) -> int:
        """How many rows G_A has."""
        return sum(self._restoring)

    def gram(self) -> Tensor:
        """Return W Wᵀ, float64 [n, n]."""
        return self._summed(sample_space.gram(self.rows), lambda copies: sample_space.gram(self.rows[:, copies]))

    def along(self, direction: Directions, *, protect: bool = False) -> Tensor:
        """Return G_A v, or G_B v, float64, for v [N] float32; of several v, each side of G_A takes its own."""
        if protect:
            parts = [self.rows[self.restoring :]]
        else:
            parts = list(torch.split(self.rows[: self.restoring], list(self._restoring)))
        several = [direction] * len(parts) if isinstance(direction, Tensor) else direction
        pairs = list(zip(parts, several, strict=True))

        def of_copies(copies: Tensor) -> Tensor:
            return torch.cat([sample_space.forward(part[:, copies], one[copies]) for part, one in pairs])

        return self._summed(torch.cat([sample_space.forward(part, one) for part, one in pairs]), of_copies)

    def combined(self, weights: Tensor) -> Tensor:
        """Return Wᵀ y for y float64 [n], float32 [N]."""
        return sample_space.backward(self.rows, weights)

    def _summed(self, here: Tensor, of_copies: Callable[[Tensor], Tensor]) -> Tensor:
        """Add up over the ranks what they hold, without the columns that others count."""
        if self._copies is not None:
            here = here - of_copies(self._copies)
        return summed(here) if self._spread else here


class _Writer:
    def __init__(self, linearisation: Linearisation) -> None:
        self._columns = linearisation.sources.columns
        self._gradients = SampleGradients(linearisation.sources.model, self._columns)

    def write(self, blocks: Sequence[Rows], rows: Tensor) -> None:
        start = 0
        for block in counted("gradients", blocks, size=count):
            for chunk in self._gradients.chunks(block):
                stop = start + count(chunk)
                self._gradients.write(chunk, rows[start:stop])
                self._check_finite(rows[start:stop])
                rows[start:stop] *= chunk["weight"].to(rows.dtype).unsqueeze(1)
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
