"""What is left of the base's circuit along a training run, with the task's reward beside it: adaptation, retention."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlforget.circuits.circuit import Circuit
from rlforget.circuits.comparison import Comparison, Finder, compare_circuits
from rlforget.circuits.kept import Kept
from rlforget.domains import Domain, evaluate
from rlforget.errors import ConfigError

if TYPE_CHECKING:
    from rlforget.circuits.task import Task

Reward = Domain | Callable[[Any], float]
"""A domain, whose mean sampled reward is measured, or any function of a model."""

_ROW = "{:<14} {:>7} {:>9} {:>14} {:>7} {:>14} {:>8} {:>7} {:>11}"


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint of a run.

    Attributes:
        name: The stage's name, e.g. `base`, `step 100`.
        reward: The task's reward there; None where none was measured.
        kept: What is left of the base's circuit; the base itself keeps all.
    """

    name: str
    reward: float | None
    kept: Kept

    def to_dict(self) -> dict[str, Any]:
        """Return every figure as plain JSON values."""
        return {"name": self.name, "reward": self.reward, "kept": self.kept.to_dict()}


@dataclass(frozen=True)
class Trajectory:
    """A run's checkpoints in order, the base first.

    Attributes:
        checkpoints: The base, then every checkpoint.
        comparison: The comparison that the figures come from.
    """

    checkpoints: list[Checkpoint]
    comparison: Comparison

    def curve(self, measure: str = "retention") -> list[tuple[float, float]]:
        """Return (reward, measure) of every checkpoint that has a reward: the trade-off of adapting and keeping."""
        return [(one.reward, one.kept[measure].value) for one in self.checkpoints if one.reward is not None]

    def table(self) -> str:
        """Return a table for people, at most 100 columns wide."""
        head = ("checkpoint", "reward", "retention", "95%", "chance", "null 95%", "ceiling", "halves", "correlation")
        rows = [_ROW.format(*head)]
        for one in self.checkpoints:
            kept = one.kept.retention
            spread, null = kept.interval, kept.null
            rows.append(
                _ROW.format(
                    one.name if len(one.name) <= 14 else one.name[:11] + "...",
                    "–" if one.reward is None else f"{one.reward:.3f}",
                    f"{kept.value:.3f}",
                    "–" if spread is None else f"{spread.low:.3f}–{spread.high:.3f}",
                    f"{kept.chance:.3f}",
                    f"{null.low:.3f}–{null.high:.3f}",
                    "–" if kept.ceiling is None else f"{kept.ceiling.mean:.3f}",
                    "–" if kept.at_halves is None else f"{kept.at_halves.mean:.3f}",
                    f"{one.kept['correlation'].value:.3f}",
                )
            )
        return "\n".join(rows)

    def to_dict(self) -> dict[str, Any]:
        """Return every figure as plain JSON values."""
        return {"checkpoints": [one.to_dict() for one in self.checkpoints], "settings": self.comparison.settings}


def follow(
    base: Any,
    checkpoints: Iterable[tuple[str, Any]],
    task: Task | str,
    *,
    reward: Reward | None = None,
    tokenizer: Any = None,
    method: str = "eap-ig",
    size: int | float | None = None,
    evaluation_count: int = 256,
    seed: int = 0,
    find_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> Trajectory:
    """Compare every checkpoint of a run with its base.

    Args:
        base: The model that the run started from.
        checkpoints: (name, model) in order. It is read one at a time, so a generator that loads one checkpoint after
            another, such as a history's stages, keeps one of them in memory.
        task: Pairs of prompts, or the name of a domain.
        reward: What the run adapts to: a domain, whose prompts are sampled, or a function of the model.
        tokenizer: Encodes the prompts; by default the one in the base's folder.
        method: How circuits are found, see `find`.
        size: Heads in each circuit, or which share of all.
        evaluation_count: Prompts for a domain's reward.
        seed: Seed of everything.
        find_options: Further options of `find`.
        options: Further options of `compare_circuits`.

    Raises:
        ConfigError: No checkpoint, or two of one name.
        LayoutError: A checkpoint of another architecture.
    """
    find = Finder(base, task, method, tokenizer=tokenizer, size=size, seed=seed, options=find_options or {})

    def scored(model: Any) -> float | None:
        if not isinstance(reward, Domain):
            return None if reward is None else float(reward(model))
        return evaluate(model, find.tokenizer, reward, count=evaluation_count, seed=seed).mean

    circuits: dict[str, Circuit] = {}
    rewards: dict[str, float | None] = {"base": scored(base)}
    first = find(base)
    for name, model in checkpoints:
        if name in rewards:
            raise _fault(f"one checkpoint called {name!r}", "two, or the base's name")
        circuits[name], rewards[name] = find(model), scored(model)
    return trajectory_of_circuits(first, circuits, rewards=rewards, seed=seed, **options)


def trajectory_of_circuits(
    base: Circuit,
    checkpoints: Mapping[str, Circuit],
    *,
    rewards: Mapping[str, float | None] | None = None,
    delta_sweep: Sequence[float] = (),
    **options: Any,
) -> Trajectory:
    """Compare circuits that were found along a run; see `follow`.

    Args:
        base: The base's circuit.
        checkpoints: Every checkpoint's circuit by name, in order.
        rewards: The task's reward by the checkpoint's name, and under `base`.
        delta_sweep: Values of δ; none by default, since checkpoints of one run are not held against each other.
        options: Further options of `compare_circuits`.
    """
    if not checkpoints:
        raise _fault("at least one checkpoint", "none")
    known = rewards or {}
    compared = compare_circuits(base, {"base": base, **checkpoints}, delta_sweep=delta_sweep, pairs=False, **options)
    rows = [Checkpoint(name, known.get(name), kept) for name, kept in compared.kept.items()]
    return Trajectory(rows, compared)


def _fault(expected: str, found: str) -> ConfigError:
    return ConfigError("checkpoints", expected=expected, found=found, fix="Pass (name, model) pairs, each name once.")
