"""What a monitor measures at a step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rlforget.delta.overlaps import SetOverlap
from rlforget.delta.stats import Change
from rlforget.domains import Score
from rlforget.interference.divergence import Divergence


@dataclass(frozen=True)
class Figures:
    """One measurement.

    Attributes:
        step: Optimizer steps taken.
        change: The trained parameters' change since the reference, in the reference's dtype.
        frozen: Floating-point coordinates that are not trained: they count as unchanged in `sparsity`.
        one_step: The change by the last optimizer step, in the parameters' dtype; of a sample of the coordinates where
            there are more than `one_step.COORDINATES`. None where no step was watched.
        overlaps: By earlier stage, the overlap of the changed coordinates with those that it changed.
        damage: By protected domain, ½ Σ F δ² since the reference, in nats a completion; see `Dependence`.
        conflict: By protected domain, how much more than a change of the same size without direction this one costs:
            (Σ F δ² / Σ δ²) / mean F. 1 is chance; nothing where nothing changed.
        divergence: By protected domain, KL(π_start ‖ π_now) on held completions, in nats a completion.
        rewards: By evaluated domain, its sampled reward, at steps where it was evaluated.
        guarded: What the guard did at the last step.
        seconds: What the measurement took, with the look at one step and without the evaluations.
    """

    step: int
    change: Change
    frozen: int = 0
    one_step: Change | None = None
    overlaps: dict[str, SetOverlap] = field(default_factory=dict)
    damage: dict[str, float] = field(default_factory=dict)
    conflict: dict[str, float] = field(default_factory=dict)
    divergence: dict[str, Divergence] = field(default_factory=dict)
    rewards: dict[str, Score] = field(default_factory=dict)
    guarded: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    def sparsity(self, tolerance: str = "bits") -> float:
        """Return the share of all floating-point coordinates that are unchanged, frozen ones too.

        Args:
            tolerance: `bits`; `absolute`, within 1e-5 (2505.11711); or `relative`, within 1e-3 (2511.08567).
        """
        changed = {
            "bits": self.change.changed,
            "absolute": self.change.changed_absolute,
            "relative": self.change.changed_relative,
        }[tolerance]
        total = self.change.numel + self.frozen
        return 1.0 - changed / total if total else 1.0

    def flat(self) -> dict[str, float]:
        """Return the figures by name, as experiment trackers take them: `update_sparsity`, `damage/math`, ..."""
        found = {
            "update_sparsity": self.sparsity(),
            "update_sparsity_absolute": self.sparsity("absolute"),
            "update_sparsity_relative": self.sparsity("relative"),
            "update_norm": self.change.l2,
            "seconds": self.seconds,
        }
        if self.one_step is not None:
            found["step_sparsity"] = self.one_step.sparsity
            found["step_norm"] = self.one_step.l2
        for name, shared in self.overlaps.items():
            found[f"overlap/{name}"] = shared.of_second
            found[f"overlap_by_chance/{name}"] = shared.of_second_by_chance
        found |= {f"damage/{name}": value for name, value in self.damage.items()}
        found |= {f"conflict/{name}": value for name, value in self.conflict.items()}
        for name, kl in self.divergence.items():
            found[f"kl/{name}"], found[f"kl_stderr/{name}"] = kl.mean, kl.stderr
        for name, score in self.rewards.items():
            found[f"reward/{name}"], found[f"reward_stderr/{name}"] = score.mean, score.stderr
        return found | {f"guard/{name}": value for name, value in self.guarded.items()}

    def to_dict(self) -> dict[str, Any]:
        """Return step and figures as plain numbers, ready for JSON, with the counts behind the shares."""
        counts = {"coordinates": self.change.numel, "frozen": self.frozen, "changed": self.change.changed}
        if self.one_step is not None:
            counts["step_coordinates"] = self.one_step.numel
        return {"step": self.step, **counts, "dtypes": list(self.change.dtypes), **self.flat()}
