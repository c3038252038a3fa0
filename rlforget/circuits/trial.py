"""A model put to a task: the values of the metric between which heads move it, and what takes the heads' place.

Reading these costs two forwards a batch beside whatever a method runs itself. A method that needs the outputs on the
counterfactual prompts, or runs the clean ones, shares these passes, so that none is made twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from rlforget.circuits.ablation import Positions, Sources
from rlforget.circuits.forward import answer_logits
from rlforget.circuits.heads import HeadSites
from rlforget.circuits.metrics import Metric
from rlforget.circuits.task import TaskBatch
from rlforget.errors import NonFiniteError, UndefinedCircuitError

REFERENCES = ("clean", "corrupt", "ablated")
"""The metric on the clean prompts, on the counterfactual ones, and on the clean ones with every head replaced."""


class Trial:
    """A model put to a task under one ablation.

    Args:
        model: A causal language model, evaluating, none of whose parameters require a gradient.
        sites: Its heads.
        batches: The task, on the model's device.
        metric: What is measured.
        ablation: What a head's output is replaced by.
        positions: Where.
    """

    def __init__(
        self,
        model: Any,
        sites: HeadSites,
        batches: Sequence[TaskBatch],
        metric: Metric,
        ablation: str = "resample",
        positions: Positions = "all",
    ) -> None:
        self.model, self.sites, self.batches, self.metric = model, sites, batches, metric
        self.ablation, self.positions = ablation, positions
        self.sources = Sources(model, sites, batches, ablation, positions)
        self._values: dict[str, dict[int, Tensor]] = {name: {} for name in REFERENCES}

    def where(self, number: int) -> Tensor:
        """Return where heads are replaced in a batch: bool [B, T]."""
        return self.sources.replaced(self.batches[number])

    @torch.no_grad()
    def replacement(self, number: int) -> list[Tensor]:
        """Return what takes the place of each layer's heads in a batch: [B, T, heads, head_dim] or broadcastable.

        The metric on the counterfactual prompts and that with every head replaced are measured on the way.
        """
        batch, none = self.batches[number], nullcontext(list[Tensor]())
        with self.sites.capture() if self.ablation == "resample" else none as found:
            self._note("corrupt", number, self.metric(answer_logits(self.model, batch, "counterfactual"), batch))
        new = [batch.aligned(z) for z in found] if self.ablation == "resample" else self.sources.of(batch)
        where = self.where(number)[..., None, None]
        with self.sites.edited(lambda layer, z: torch.where(where, new[layer], z)):
            self._note("ablated", number, self.metric(answer_logits(self.model, batch), batch))
        return new

    def note_clean(self, number: int, values: Tensor) -> None:
        """Take the metric of a batch's clean prompts, [B], from a method that has measured it."""
        self._note("clean", number, values)

    @torch.no_grad()
    def values(self) -> dict[str, Tensor]:
        """Return the metric of every prompt for each of `REFERENCES`, measuring what no method has.

        Returns:
            float32 [prompts] (float64 for a float64 model), on the CPU.

        Raises:
            NonFiniteError: The metric is NaN or Inf.
            UndefinedCircuitError: It is the same on every prompt with every head replaced.
        """
        for number, batch in enumerate(self.batches):
            if number not in self._values["ablated"]:
                self.replacement(number)
            if number not in self._values["clean"]:
                self.note_clean(number, self.metric(answer_logits(self.model, batch), batch))
        values = {name: torch.cat([parts[i] for i in sorted(parts)]) for name, parts in self._values.items()}
        if torch.equal(values["clean"], values["ablated"]):
            raise UndefinedCircuitError(
                "circuit",
                expected="a metric that changes when the heads are replaced",
                found=f"the same value on every prompt with all heads replaced ({self.ablation})",
                fix="Choose counterfactuals, an ablation or a metric that the heads have a say in.",
            )
        return values

    def _note(self, name: str, number: int, values: Tensor) -> None:
        if not bool(torch.isfinite(values).all()):
            raise NonFiniteError(
                f"the metric on {name} prompts",
                expected="finite numbers",
                found="NaN or Inf",
                fix="Run the model in float32 or bfloat16, and check its weights.",
            )
        self._values[name][number] = values.detach().cpu()
