"""Every repair the demo compares, each tried on the live model and undone to the bit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rlforget.experiments.measure import Rewards
from rlforget.experiments.settings import EARLIER, LATER, Settings
from rlforget.interference import ConflictSubspace, Coordinates, Fisher, conflict, conflict_subspace, fisher
from rlforget.interference.empirical_fisher import Where
from rlforget.recovery import rollback
from rlforget.recovery.judging import Judge, Scale

if TYPE_CHECKING:
    from rlforget.delta import Delta

COORDINATE_RULES: tuple[tuple[str, float], ...] = (
    ("fisher", 0.01),
    ("fisher", 0.02),
    ("fisher", 0.05),
    ("two_fisher", 0.05),
    ("subspace", 0.01),
    ("subspace", 0.02),
    ("magnitude", 0.02),
    ("magnitude", 0.05),
    ("random", 0.02),
    ("random", 0.05),
    ("opposed", 0.05),
    ("taylor", 0.05),
)


@dataclass(frozen=True)
class Repair:
    """What one repair did.

    Attributes:
        rule: The score, `dense subspace`, `random subspace` or `refresh`.
        fraction: Share of the model's coordinates that were put back, or None where the correction is dense.
        rewards: Mean sampled reward of each domain afterwards.
        regained: Share of the earlier domains' lost reward that came back.
        kept: Share of the later domains' gain that stayed.
        norm_share: Norm of the correction over the norm of δ.
        stderr: Standard error of each domain's reward over prompts.
        regained_stderr: That of `regained`, over the same prompts before and after.
        kept_stderr: That of `kept`.
    """

    rule: str
    fraction: float | None
    rewards: Rewards
    regained: float
    kept: float
    norm_share: float
    stderr: Rewards
    regained_stderr: float
    kept_stderr: float

    @property
    def label(self) -> str:
        """The rule, and how many coordinates it put back."""
        return self.rule if self.fraction is None else f"{self.rule}, {self.fraction:.0%} of the coordinates"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Scene:
    """A model that lost something, and what it had.

    Attributes:
        model: The live model, at the end of the sequence.
        tokenizer: Its tokenizer.
        delta: Everything since the last earlier domain's stage.
        own: The last earlier domain's own update, for the score `opposed`.
        judge: Asks the evaluation prompts, the same each time.
        scale: The answers at that stage and at the end: what is 0 and what is 1 of both shares.
        settings: Sample counts.
        seed: Seed of all draws.
    """

    model: Any
    tokenizer: Any
    delta: Delta
    own: Delta
    judge: Judge
    scale: Scale
    settings: Settings
    seed: int

    def judged(self, rule: str, fraction: float | None, norm_share: float) -> Repair:
        """Measure the model as it stands."""
        answers = self.judge.answers(self.model)
        regained, kept = self.scale.shares(answers)
        return Repair(
            rule,
            fraction,
            {name: float(values.mean()) for name, values in answers.items()},
            regained.value,
            kept.value,
            norm_share,
            {name: float(values.std()) / len(values) ** 0.5 for name, values in answers.items()},
            regained.stderr,
            kept.stderr,
        )


def training_free(scene: Scene, echo: Callable[[str], None]) -> Iterator[Repair]:
    """Try every training-free rollback in turn; the model is as it was after each."""
    echo("Fishers of every domain, at the midpoint")
    earlier, later = ([_fisher(scene, name) for name in names] for names in (EARLIER, LATER))
    echo("conflict subspace, at the midpoint")
    subspace, control = (_subspace(scene, random=random) for random in (False, True))
    for rule, found in (("dense subspace", subspace), ("random subspace", control)):
        with rollback(scene.model, scene.delta, found, seed=scene.seed):
            yield scene.judged(rule, None, found.norm / norm(scene.delta))
    sides: dict[str, Any] = {"later": later, "own": scene.own, "subspace": subspace, "seed": scene.seed}
    for score, fraction in COORDINATE_RULES:
        about_then = score == "taylor"  # which expands about the earlier stage
        damaged = [_fisher(scene, name, where="earlier") for name in EARLIER] if about_then else earlier
        scored = conflict(scene.delta, score=score, earlier=damaged, **sides)
        chosen = scored.top(fraction=fraction)
        with rollback(scene.model, scene.delta, chosen):
            yield scene.judged(score, fraction, norm(scene.delta, chosen) / norm(scene.delta))


def norm(delta: Delta, at: Coordinates | None = None) -> float:
    """Euclidean norm of a delta, or of its part at some of its coordinates."""
    squares = 0.0
    positions = at.positions(delta) if at is not None else None
    for name, tensor in delta.items():
        values = tensor.values.double()
        if positions is not None:
            values = values[positions[name]] if name in positions else values[:0]
        squares += float(values.square().sum())
    return math.sqrt(squares)


def _fisher(scene: Scene, domain: str, where: Where = "midpoint") -> Fisher:
    return fisher(
        scene.model,
        domain,
        at=scene.delta,
        samples=scene.settings.samples,
        seed=scene.seed,
        tokenizer=scene.tokenizer,
        where=where,
    )


def _subspace(scene: Scene, *, random: bool) -> ConflictSubspace:
    return conflict_subspace(
        scene.model,
        scene.delta,
        restore=EARLIER,
        protect=() if random else LATER,
        samples=scene.settings.samples,
        passes=1,
        seed=scene.seed,
        tokenizer=scene.tokenizer,
        random=random,
    )
