"""The points at which the gradients of the conflict subspace are taken, and the rows taken there."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from rlforget.interference.blocks import subtract_block_
from rlforget.interference.completions import Batch
from rlforget.interference.point import moved
from rlforget.interference.rows import Kind, Rows, domain_rows
from rlforget.interference.sample_gradients import Column, width
from rlforget.weights.ranks import gathered
from rlforget.weights.sharding import Sharding

Directions = Tensor | Sequence[Tensor]


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

    def along(self, direction: Directions, *, protect: bool = False) -> Tensor:
        """Return G_A v, or G_B v; of several v, each of G_A's sides takes its own."""

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
        sharding: By the columns' names, what of the parameters lies on this rank; None: they are whole.
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
    sharding: Sharding | None = None

    def counted(self) -> Tensor | None:
        """Return which entries of a row this rank counts where ranks add up, bools [width]; None: all."""
        if self.sharding is None:
            return None
        counted = torch.ones(width(self.columns), dtype=torch.bool)
        for name, column in self.columns.items():
            counted[column.span] = name in self.sharding.counted
        return None if bool(counted.all()) else counted

    def norm(self, vector: Tensor) -> float:
        """Return the norm of a vector over the columns, float32 [width] here, on all ranks."""
        counted = self.counted()
        here = vector if counted is None else vector[counted.to(vector.device)]
        square = float(here.double().square().sum())
        return math.sqrt(square if self.sharding is None else sum(gathered(square)))


@dataclass(frozen=True)
class Side:
    """Rows of G that are taken at one point.

    Attributes:
        change: δ since the stage of the domains to restore, float32 [width]; None for domains to protect.
        rows: The rows, in blocks, with completions sampled at the point.
    """

    change: Tensor | None
    rows: list[Rows] = field(default_factory=list)


@dataclass(frozen=True)
class Linearisation:
    """Rows for a correction of what `correction` leaves of the changes, and the points that they are taken at.

    Attributes:
        sources: What the rows are made of.
        correction: What earlier passes took off, float32 [width].
        restoring: The sides of G_A, one for each change, each taken at its midpoint before + (δ − correction)/2.
        protecting: The one side of G_B, taken at the present, now − correction.
    """

    sources: Sources
    correction: Tensor
    restoring: tuple[Side, ...]
    protecting: Side

    @classmethod
    def draw(cls, sources: Sources, changes: Sequence[Tensor], correction: Tensor) -> Linearisation:
        """Sample the completions and take rows of them. The model's bits are put back.

        Args:
            sources: What the rows are made of.
            changes: δ for each domain to restore. Neighbours with the same one, the object itself, share a side.
            correction: What earlier passes took off.
        """
        runs = [list(run) for _, run in groupby(range(len(changes)), key=lambda i: id(changes[i]))]
        drawn = cls(sources, correction, tuple(Side(changes[run[0]]) for run in runs), Side(None))
        for side, run in zip(drawn.restoring, runs, strict=True):
            drawn._fill(side, [sources.restore[i] for i in run], [sources.restore_shares[i] for i in run])
        drawn._fill(drawn.protecting, sources.protect, sources.protect_shares)
        return drawn

    @property
    def sides(self) -> tuple[Side, ...]:
        """G_A's, then G_B's."""
        return (*self.restoring, self.protecting)

    @property
    def blocks(self) -> list[Rows]:
        """The rows of all sides."""
        return [rows for side in self.sides for rows in side.rows]

    def at(self, side: Side, only: Iterable[nn.Parameter] | None = None) -> AbstractContextManager[None]:
        """Hold the model, or `only` some of its parameters, where a side's rows are taken.

        Narrow weights are rounded stochastically: most of a correction is below half a unit in the last place, and to
        nearest a later pass would be taken as if the ones before it had done nothing.
        """
        columns, change = self.sources.columns, side.change
        wanted = None if only is None else set(map(id, only))

        def shifted(name: str, now: Tensor) -> Tensor:
            column, new = columns[name], now.clone()
            taken = self.correction[column.span]
            part = (taken if change is None else (change[column.span] + taken) / 2).to(now.device).view(now.shape)
            subtract_block_(new, part, column.box, seed=self.sources.seed, offset=column.offset)
            return new

        kept = {n: c.parameter for n, c in columns.items() if wanted is None or id(c.parameter) in wanted}
        return moved(self.sources.model, kept, shifted)

    def left(self) -> list[Tensor]:
        """Return δ − correction for each side to restore, float32 [width]."""
        return [side.change - self.correction for side in self.restoring if side.change is not None]

    def _fill(self, side: Side, domains: Sequence[list[Batch]], shares: Sequence[float]) -> None:
        with self.at(side):
            for batches, share in zip(domains, shares, strict=True):
                side.rows.extend(
                    domain_rows(
                        self.sources.model,
                        batches,
                        alone=self.sources.sharding is not None,
                        kind=self.sources.kind,
                        budget=self.sources.budget,
                        share=share,
                        seed=self.sources.seed,
                        tokenizer=self.sources.tokenizer,
                    )
                )
