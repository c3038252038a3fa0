"""The points at which the gradients of the conflict subspace are taken, and the rows taken there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from rlforget.interference.completions import Batch
from rlforget.interference.point import moved
from rlforget.interference.rows import Kind, Rows, domain_rows, total
from rlforget.interference.sample_gradients import Column
from rlforget_kernels.common.arithmetic import widened


class SampleSpace(Protocol):
    """W = [G_A; G_B] seen from the sample side: all that a solution in the sample space needs of it.

    Vectors over weights are float32 [N], over the columns; those over rows are float64 [n], on the CPU or the model's
    device as the form has it. G_A's rows come first.
    """

    @property
    def device(self) -> torch.device:
        """Where vectors over the weights are."""

    @property
    def restoring(self) -> int:
        """How many rows G_A has."""

    def gram(self) -> Tensor:
        """Return W Wᵀ, float64 [n, n]."""

    def along(self, direction: Tensor, *, protect: bool = False) -> Tensor:
        """Return G_A v, or G_B v."""

    def combined(self, weights: Tensor) -> Tensor:
        """Return Wᵀ y."""


@dataclass(frozen=True)
class Sources:
    """What rows are made of.

    Attributes:
        model: The model, at the weights called now.
        columns: Where each parameter's gradient stands in a row, whole.
        restore: For each domain to restore, its batches.
        protect: For each domain to protect, likewise.
        kind: What a row is.
        budget: Rows a domain at most.
        restore_shares: Weights of the domains to restore, in the sum.
        protect_shares: Likewise.
        seed: Seed of the completions and of the draw of rows.
        tokenizer: Names the padding and the end token.
    """

    model: nn.Module
    columns: Mapping[str, Column]
    restore: Sequence[list[Batch]]
    protect: Sequence[list[Batch]]
    kind: Kind
    budget: int | None
    restore_shares: Sequence[float]
    protect_shares: Sequence[float]
    seed: int
    tokenizer: Any


@dataclass(frozen=True)
class Linearisation:
    """Rows for a correction of what `correction` leaves of `change`, and the points that their gradients are taken at.

    Attributes:
        sources: What the rows are made of.
        change: δ, float32 [width].
        correction: What earlier passes took off, float32 [width].
        restore: The rows of G_A, in blocks, with completions sampled at the midpoint before + (δ − correction)/2.
        protect: The rows of G_B, with completions sampled at the present, now − correction.
        restore_domain: For each row of G_A, the position of its domain, int64.
        protect_domain: Likewise.
    """

    sources: Sources
    change: Tensor
    correction: Tensor
    restore: list[Rows] = field(default_factory=list)
    protect: list[Rows] = field(default_factory=list)
    restore_domain: list[int] = field(default_factory=list)
    protect_domain: list[int] = field(default_factory=list)

    @classmethod
    def draw(cls, sources: Sources, change: Tensor, correction: Tensor) -> Linearisation:
        """Sample the completions and take rows of them. The model's bits are put back."""
        drawn = cls(sources, change, correction)
        with drawn.midpoint():
            drawn._fill(sources.restore, sources.restore_shares, drawn.restore, drawn.restore_domain)
        with drawn.present():
            drawn._fill(sources.protect, sources.protect_shares, drawn.protect, drawn.protect_domain)
        return drawn

    def midpoint(self, only: Iterable[nn.Parameter] | None = None) -> AbstractContextManager[None]:
        """Hold the model, or `only` some of its parameters, half-way between before and now − correction."""
        return self._moved(lambda span: (self.change[span] + self.correction[span]) / 2, only)

    def present(self, only: Iterable[nn.Parameter] | None = None) -> AbstractContextManager[None]:
        """Hold the model, or `only` some of its parameters, at now − correction."""
        return self._moved(lambda span: self.correction[span], only)

    @property
    def restoring(self) -> int:
        """How many rows G_A has."""
        return total(self.restore)

    @property
    def height(self) -> int:
        """How many rows G_A and G_B have together."""
        return self.restoring + total(self.protect)

    def _fill(
        self, domains: Sequence[list[Batch]], shares: Sequence[float], rows: list[Rows], domain_of: list[int]
    ) -> None:
        for domain, batches in enumerate(domains):
            found = domain_rows(
                self.sources.model,
                batches,
                kind=self.sources.kind,
                budget=self.sources.budget,
                share=shares[domain],
                seed=self.sources.seed,
                tokenizer=self.sources.tokenizer,
            )
            rows += found
            domain_of += [domain] * total(found)

    def _moved(
        self, shift: Callable[[slice], Tensor], only: Iterable[nn.Parameter] | None
    ) -> AbstractContextManager[None]:
        columns = self.sources.columns
        wanted = None if only is None else set(map(id, only))

        def shifted(name: str, now: Tensor) -> Tensor:
            part = shift(columns[name].span).to(now.device).view(now.shape)
            return (widened(now) - part).to(now.dtype)

        kept = {n: c.parameter for n, c in columns.items() if wanted is None or id(c.parameter) in wanted}
        return moved(kept, shifted)
