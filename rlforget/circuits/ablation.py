"""What a head's output is replaced by, and at which positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from rlforget.circuits.forward import answer_logits
from rlforget.circuits.heads import HeadSites
from rlforget.circuits.task import TaskBatch
from rlforget.errors import ConfigError, UnknownNameError

Ablation = Literal["resample", "mean", "zero"]
ABLATIONS: tuple[str, ...] = ("resample", "mean", "zero")

Positions = Literal["all", "last"] | Sequence[tuple[int, int]]
"""Where heads are replaced: at every token of prompt and answer; at those from which an answer token is predicted (the
last of the prompt, where the answer is one token); or at spans (start, stop) of the prompt's tokens, as in a slice: a
negative number counts from the prompt's end."""


class Sources:
    """The outputs that take a head's place.

    - `resample`: the head's own output on the counterfactual prompt, position by position; where the two prompts differ
      in length, at the position that stands for it (see `alignment.align`).
    - `mean`: the head's mean output over the task's counterfactual prompts and their positions.
    - `zero`: zeros.

    Args:
        model: The model, in evaluation mode.
        sites: Its heads.
        batches: All of the task, for the mean.
        ablation: Which of the three.
        positions: Over which positions a mean is taken; where heads are replaced is `replaced`.

    Raises:
        UnknownNameError: There is no such ablation.
    """

    def __init__(
        self,
        model: nn.Module,
        sites: HeadSites,
        batches: Sequence[TaskBatch],
        ablation: str,
        positions: Positions = "all",
    ) -> None:
        if ablation not in ABLATIONS:
            expected = f"one of {', '.join(ABLATIONS)}"
            raise UnknownNameError(
                f"ablation {ablation!r}", expected=expected, found=repr(ablation), fix="Check the spelling."
            )
        self.model, self.sites, self.ablation, self.positions = model, sites, ablation, positions
        self._means = self._mean_outputs(batches) if ablation == "mean" else []

    @torch.no_grad()
    def of(self, batch: TaskBatch) -> list[Tensor]:
        """Return the replacement of each layer's heads, [B, T, heads, head_dim] or broadcastable to it."""
        if self.ablation == "mean":
            return self._means
        if self.ablation == "zero":
            like = next(self.model.parameters())
            return [torch.zeros(1, 1, 1, width, device=like.device, dtype=like.dtype) for width in self.sites.head_dim]
        with self.sites.capture() as found:
            answer_logits(self.model, batch, "counterfactual")
        return [batch.aligned(z) for z in found]

    def replaced(self, batch: TaskBatch) -> Tensor:
        """Return where heads are replaced: bool [B, T]."""
        return replaced_positions(batch, self.positions)

    @torch.no_grad()
    def _mean_outputs(self, batches: Sequence[TaskBatch]) -> list[Tensor]:
        totals: list[Tensor] = []
        count = 0
        for batch in batches:
            here = replaced_positions(batch, self.positions)
            with self.sites.capture() as found:
                answer_logits(self.model, batch, "counterfactual")
            # [heads, head_dim], in float64: the mean must not follow the size of the batches.
            sums = [batch.aligned(z)[here].sum(0, dtype=torch.float64) for z in found]
            totals = [a + b for a, b in zip(totals, sums, strict=True)] if totals else sums
            count += int(here.sum())
        dtype = next(self.model.parameters()).dtype
        return [(total / max(count, 1)).to(dtype)[None, None] for total in totals]


def replaced_positions(batch: TaskBatch, positions: Positions) -> Tensor:
    """Return where heads are replaced: bool [B, T], False on padding.

    Raises:
        ConfigError: `positions` is none of its kinds, or a span covers no token of any prompt.
    """
    present = batch.attention_mask.bool()
    if positions == "all":
        return present
    if positions == "last":
        chosen = torch.zeros_like(present, dtype=torch.int64)
        return chosen.scatter_add(1, batch.positions, batch.answer_mask.long()) > 0
    if isinstance(positions, str) or not all(_is_span(span) for span in positions):
        raise _positions_fault(repr(positions))
    step = torch.arange(present.shape[1], device=present.device) - batch.prompt_starts[:, None]  # [B, T] in the prompt
    length = (batch.positions[:, 0] - batch.prompt_starts + 1)[:, None]  # [B, 1] of the prompt
    spans = torch.zeros_like(present)
    for start, stop in positions:
        low, high = (length + edge if edge < 0 else torch.full_like(length, edge) for edge in (start, stop))
        spans |= (step >= low) & (step < high) & (step < length) & (step >= 0)
    if not bool(spans.any()):
        raise _positions_fault(f"{list(positions)!r}, which covers no token")
    return spans


def _is_span(span: object) -> bool:
    return isinstance(span, tuple | list) and len(span) == 2 and all(isinstance(edge, int) for edge in span)


def _positions_fault(found: str) -> ConfigError:
    return ConfigError(
        "positions",
        expected="'all', 'last', or spans (start, stop) of the prompt's tokens",
        found=found,
        fix="Write the second and third token as [(1, 3)].",
    )
