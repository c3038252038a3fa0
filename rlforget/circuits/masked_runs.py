"""The model under a mask: some heads work as they are, the others' outputs are replaced."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from rlforget.circuits.ablation import Positions, Sources
from rlforget.circuits.finding import task_batches
from rlforget.circuits.forward import answer_logits, measuring
from rlforget.circuits.heads import HeadSites
from rlforget.circuits.metrics import Metric, get
from rlforget.circuits.task import Task
from rlforget.counting import counted
from rlforget.errors import ConfigError, NonFiniteError


@contextmanager
def gated(sites: HeadSites, gates: Tensor, replacement: list[Tensor], where: Tensor) -> Iterator[None]:
    """Mix every head's output with its replacement in each forward of the block: g · own + (1 − g) · replacement.

    Args:
        sites: The model's heads.
        gates: [B, layers, heads], one table a row of the batch. Bool: a head is kept to the bit or replaced to the bit.
            Real: a mixture, differentiable in the gates; 1 and 0 give finite outputs to the bit.
        replacement: One tensor [B, T, heads, head_dim] a layer, or broadcastable to it.
        where: bool [B, T], the positions at which heads are replaced at all.
    """

    def edit(layer: int, z: Tensor) -> Tensor:
        gate, new, here = gates[:, layer, None, :, None], replacement[layer], where[:, :, None, None]
        if gates.dtype == torch.bool:
            return torch.where(gate | ~here, z, new)
        gate = gate.to(z.dtype)
        return torch.where(here, gate * z + (1 - gate) * new, z)

    with sites.edited(edit):
        yield


class MaskedRuns:
    """A task's metric in a model of which only some heads work.

    Args:
        model: A decoder-only causal language model.
        task: Pairs of prompts, or the name of a domain.
        tokenizer: Encodes the prompts; by default the one in the model's folder.
        metric: As in `find`.
        ablation: As in `find`.
        positions: As in `find`.
        batch_size: Rows a forward; a forward takes several masks where the task has fewer pairs.
        samples: As in `find`.

    Attributes:
        sites: The model's heads.
        batches: The task, encoded.
    """

    def __init__(
        self,
        model: Any,
        task: Task | str,
        *,
        tokenizer: Any = None,
        metric: str | Metric = "log_prob_difference",
        ablation: str = "resample",
        positions: Positions = "all",
        batch_size: int = 32,
        samples: int | None = None,
    ) -> None:
        self.model, self.metric = model, get(metric)
        self.sites = HeadSites(model)
        self.batches = task_batches(model, task, tokenizer, batch_size=batch_size, samples=samples)
        self._batch_size = batch_size
        self._ablation, self._positions = ablation, positions
        self._replacements: list[tuple[list[Tensor], Tensor]] = []

    @property
    def shape(self) -> tuple[int, int]:
        """(layers, heads)."""
        return self.sites.shape

    @torch.no_grad()
    def values(self, masks: Tensor) -> Tensor:
        """Measure the metric of every prompt under every mask. Masks that are equal are run once.

        Args:
            masks: bool [masks, layers, heads], True where a head is kept.

        Returns:
            float64 [masks, prompts] on the CPU.

        Raises:
            NonFiniteError: The metric is NaN or Inf.
        """
        different, index = torch.unique(masks.cpu(), dim=0, return_inverse=True)
        first = self.batches[0].rows(slice(1))
        with measuring(self.model), self.sites.observable(lambda: answer_logits(self.model, first)):
            if not self._replacements:
                sources = Sources(self.model, self.sites, self.batches, self._ablation, self._positions)
                self._replacements = [(sources.of(batch), sources.replaced(batch)) for batch in self.batches]
            found = torch.cat([self._on(batch, different) for batch in range(len(self.batches))], dim=1)
        if not bool(torch.isfinite(found).all()):
            raise NonFiniteError(
                "the metric", expected="finite numbers", found="NaN or Inf", fix="Run the model in float32 or bfloat16."
            )
        return found[index]

    def _on(self, number: int, masks: Tensor) -> Tensor:
        """Return [masks, prompts of one batch]."""
        batch, (replacement, where) = self.batches[number], self._replacements[number]
        pairs = len(batch)
        found = []
        for group in counted("masks", torch.split(masks, max(1, self._batch_size // pairs)), size=len):
            times = len(group)
            rows = batch.repeat(times)
            gates = group.to(where.device).repeat_interleave(pairs, dim=0)
            news = [new.repeat(times, 1, 1, 1) if new.shape[0] == pairs else new for new in replacement]
            with gated(self.sites, gates, news, where.repeat(times, 1)):
                values = self.metric(answer_logits(self.model, rows), rows)
            found.append(values.double().cpu().view(times, pairs))
        return torch.cat(found)


def check_mask(mask: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return a circuit's mask on the CPU.

    Raises:
        ConfigError: It is not bool, or has not one entry a head.
    """
    if mask.dtype != torch.bool or tuple(mask.shape) != shape:
        raise ConfigError(
            "mask",
            expected=f"bool {list(shape)}, one entry a head",
            found=f"{str(mask.dtype).removeprefix('torch.')} {list(mask.shape)}",
            fix="Use the mask of a circuit of this architecture.",
        )
    return mask.cpu()
