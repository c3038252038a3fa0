"""What a monitor is asked to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

import torch

from rlforget import domains
from rlforget.delta import Delta, DeltaFile
from rlforget.domains import Domain
from rlforget.errors import ConfigError
from rlforget.history import History
from rlforget.interference.completions import Batches
from rlforget.training.log import Log
from rlforget.training.monitor.keeping import Keep
from rlforget.training.protection import Protection
from rlforget.weights import WeightsLike

Protected = Sequence[str | Domain] | Mapping[str, Batches]


@dataclass(frozen=True, kw_only=True)
class MonitorSettings:
    """What to measure, how often, and what to do with it.

    Attributes:
        every: Optimizer steps from one measurement to the next.
        reference: The weights to compare with; None: those at the start of the run.
        dtype: In which the reference is kept, and so in which a change counts: bfloat16 is what most checkpoints store.
            None: each parameter's own, bit for bit.
        keep: Where the reference and the Fishers are: `device`, `memory` (pinned beside a GPU) or `disk`
            (memory-mapped).
        folder: For `disk`, where; None: the system's folder for temporary files.
        protect: Domains whose damage is predicted and measured: names and domains, or {name: batches}.
        fisher_samples: Completions that a protected domain's Fisher is taken over; 0 takes none, and then there is no
            `damage` and no `conflict`.
        held_samples: Completions that a protected domain's KL is measured on; 0 measures none. Each costs a forward
            pass; four times as many halve the standard error that is told with it.
        earlier: {stage: its delta, or its file}, to compare the changed coordinates with.
        evaluate: Domains whose reward is sampled.
        evaluate_every: Optimizer steps between evaluations, a multiple of `every`; None: at the start and the end.
        evaluate_count: Prompts an evaluation, of the evaluation split.
        warn_at: Nats a completion of predicted damage, or of KL, beyond which a `ForgettingWarning` is given, once a
            domain.
        stop: Whether a warning also ends the run: `should_stop` turns true, and a trainer stops.
        history: A history, or its folder, that the run is committed to.
        domain: The domain that the run trains, for the history.
        commit_every: Optimizer steps between commits; None: at the end alone.
        guard: Spare the protected domains at every step: `project`, `fisher` or `surgery`; see `protecting`.
        guard_samples: Completions a domain that the guard is made of.
        log: A path that a JSON line a measurement is appended to, or a log.
        tokenizer: Encodes the domains' prompts; by default the trainer's, or the one in the model's folder.
        seed: Seed of prompts and completions.

    Raises:
        ConfigError: Numbers out of range, or options that would do nothing.
    """

    every: int = 10
    reference: WeightsLike | None = None
    dtype: torch.dtype | None = torch.bfloat16
    keep: Keep = "memory"
    folder: str | PathLike[str] | None = None
    protect: Protected = ()
    fisher_samples: int = 64
    held_samples: int = 8
    earlier: Mapping[str, Delta | DeltaFile | str | PathLike[str]] = field(default_factory=dict)
    evaluate: Sequence[str | Domain] = ()
    evaluate_every: int | None = None
    evaluate_count: int = 64
    warn_at: float | None = None
    stop: bool = False
    history: History | str | PathLike[str] | None = None
    domain: str | None = None
    commit_every: int | None = None
    guard: Protection | None = None
    guard_samples: int = 64
    log: Log | str | PathLike[str] | None = None
    tokenizer: Any = None
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.protect, Mapping):  # batches that can be taken but once are taken now
            held = {
                name: given if isinstance(given, str | Domain) else tuple(given) for name, given in self.protect.items()
            }
            object.__setattr__(self, "protect", held)
        for name in ("every", "evaluate_count", "guard_samples"):
            _check(name, getattr(self, name) >= 1, "at least 1", getattr(self, name))
        for name in ("fisher_samples", "held_samples"):
            _check(name, getattr(self, name) >= 0, "0 or more", getattr(self, name))
        if self.evaluate_every is not None:
            whole = self.evaluate_every >= 1 and self.evaluate_every % self.every == 0
            _check("evaluate_every", whole, f"a multiple of every={self.every}", self.evaluate_every)
        if self.commit_every is not None:
            _check("commit_every", self.commit_every >= 1, "at least 1", self.commit_every)
        if self.warn_at is not None:
            _check("warn_at", self.warn_at > 0, "a positive number of nats", self.warn_at)
        _check("stop", not self.stop or self.warn_at is not None, "warn_at= beside it", "none")
        _check("commit_every", self.commit_every is None or self.history is not None, "history= beside it", "none")
        _check("evaluate_every", self.evaluate_every is None or bool(self.evaluate), "evaluate= beside it", "none")
        for name in ("guard", "warn_at"):
            needed = getattr(self, name) is not None
            _check(name, not needed or bool(self.protect), "domains to protect= beside it", "none")

    def protected(self) -> dict[str, Batches]:
        """Return the protected domains by name."""
        if isinstance(self.protect, Mapping):
            return dict(self.protect)
        chosen = [domains.get(domain) for domain in self.protect]
        return {domain.name: domain for domain in chosen}

    def deltas(self) -> dict[str, Delta | DeltaFile]:
        """Return the earlier stages' deltas; files are opened."""
        return {
            name: delta if isinstance(delta, Delta | DeltaFile) else DeltaFile(delta)
            for name, delta in self.earlier.items()
        }


def _check(name: str, holds: bool, expected: str, found: object) -> None:
    if not holds:
        raise ConfigError(name, expected=expected, found=str(found), fix=f"Give another {name}=, or leave it out.")
