"""How much each domain depends on each coordinate, and so what a change of the weights is predicted to cost it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rlforget.errors import NonFiniteError
from rlforget.interference.completions import Batches
from rlforget.interference.sample_gradients import columns_for
from rlforget.training.monitor.keeping import Keeper
from rlforget.training.monitor.trained import Line, Stretch, Trained
from rlforget.training.span import squared_gradients
from rlforget.weights.ranks import gathered
from rlforget.weights.sharding import together

_ROW = 1 << 12  # coordinates whose terms one thread adds up


class Dependence:
    """The diagonal empirical Fisher of a domain, at every trained coordinate.

    The predicted damage by a change δ is ½ Σ F δ², in nats a completion: the second order of the rise of −log π on
    completions of the model's own, for which the first order is zero in expectation. That curvature predicts forgetting
    is a finding of 2606.02398. The diagonal leaves out how coordinates act together, so it ranks changes better than it
    measures them.

    Args:
        model: The model, at the weights where the run starts.
        trained: Its trained parameters.
        keeper: Where the Fisher is kept, 4 bytes a coordinate of those that lie here. While it is made, before the
            training, it takes some 20 bytes a coordinate on the device: two completions' gradients, taken in two ways
            that have to agree; of shards 8 more, which say where each lies in its parameter.
        batches: The domain.
        samples: Completions, sampled from the model where they are not given.
        seed: Seed of prompts and completions.
        tokenizer: Encodes a domain's prompts.

    Attributes:
        mean: Mean of the Fisher over the trained coordinates.

    Raises:
        EmptyDomainError: There is nothing to sample.
        NonFiniteError: The Fisher is zero everywhere, or not finite.
    """

    def __init__(
        self,
        model: nn.Module,
        trained: Trained,
        keeper: Keeper,
        batches: Batches,
        *,
        samples: int,
        seed: int,
        tokenizer: Any,
    ) -> None:
        columns = columns_for(trained.everywhere, sharding=trained.sharding)
        values = squared_gradients(model, columns, batches, samples=samples, seed=seed, tokenizer=tokenizer)

        def kept(line: Line) -> Tensor:
            into = keeper.empty(line.numel, values.dtype, line.device)
            for start, name in zip(line.starts, line.parameters, strict=True):
                some = values[columns[name].span]
                into[start : start + some.numel()] = some
            return into

        self._lines = together(lambda: [kept(line) for line in trained.lines], trained.sharding)
        here = sum(float(line.double().sum()) for line in self._lines)
        self.mean = (here if trained.sharding is None else sum(gathered(here))) / trained.numel
        if not 0 < self.mean < float("inf"):
            raise NonFiniteError(
                "the Fisher of a protected domain",
                expected="a positive, finite mean",
                found=f"a mean of {self.mean}",
                fix="Look for NaN or Inf in the model's weights, and that the domain's completions are not empty.",
            )

    def energy(self, stretch: Stretch, squares: Tensor) -> Tensor:
        """Return Σ F δ² over a range.

        Args:
            stretch: The range.
            squares: δ² there, float32 [n].

        Returns:
            A float64 scalar on the device of `squares`, the same bits on any number of threads: a sum of all at once
            is split among them.
        """
        fisher = self._lines[stretch.line][stretch.start : stretch.stop].to(squares.device, non_blocking=True)
        terms = fisher * squares
        whole = terms.numel() // _ROW * _ROW
        rows = torch.cat([terms[:whole].view(-1, _ROW).sum(1), terms[whole:].sum().view(1)])
        return rows.sum(dtype=torch.float64)
