"""A scene on a live model: what was lost, what a repair is judged by, and what several repairs share."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, cached_property, reduce
from typing import Any

from torch import Tensor

from rlforget import delta as deltas
from rlforget.experiments.measure import Rewards, kept, regained, rewards
from rlforget.experiments.recovery_study.config import StudyConfig
from rlforget.experiments.recovery_study.courses import Course, Scene
from rlforget.interference import ConflictSubspace, Fisher, conflict_subspace, fisher
from rlforget.interference.empirical_fisher import Where
from rlforget.recovery import rollback
from rlforget.training.loading import load_model
from rlforget.training.run_folder import RunFolder, StageFolder

Row = dict[str, Any]


class Lost:
    """What a scene lost and gained, read from the records of its stages.

    Attributes:
        then: Reward of each domain at the earlier stage.
        now: Reward of each domain at the later one.
    """

    def __init__(self, study: StudyConfig, course: Course, scene: Scene) -> None:
        self.study, self.course, self.scene = study, course, scene
        self.folders = {stage.name: stage for stage in RunFolder(course.folder).finished()}
        self.then, self.now = self.rewards_at(scene.then), self.rewards_at(scene.now)

    def rewards_at(self, stage: str) -> Rewards:
        """Return the mean sampled reward of every domain after a stage."""
        return {name: score["mean"] for name, score in self.folders[stage].record["scores"].items()}

    @property
    def loss(self) -> float:
        """Mean reward that the earlier domains lost."""
        return _mean(self.then, self.scene.earlier) - _mean(self.now, self.scene.earlier)

    @property
    def gain(self) -> float:
        """Mean reward that the later domains gained."""
        return _mean(self.now, self.scene.later) - _mean(self.then, self.scene.later)

    @property
    def counts(self) -> bool:
        """Whether enough was lost, and gained, for a share of it to mean something."""
        return min(self.loss, self.gain) >= self.study.least_loss

    def row(self, rule: str, **fields: Any) -> Row:
        """Begin a row of the table: where it was measured, and by which rule."""
        course, scene = self.course, self.scene
        return {
            "base": course.base.name,
            "size": course.base.size,
            "method": course.method,
            "seed": course.seed,
            "part": scene.part,
            "earlier": "+".join(scene.earlier),
            "later": "+".join(scene.later),
            "then": _mean(self.then, scene.earlier),
            "now": _mean(self.now, scene.earlier),
            "later_then": _mean(self.then, scene.later),
            "later_now": _mean(self.now, scene.later),
            "counts": self.counts,
            "rule": rule,
            **fields,
        }

    def line(self, stage: str) -> list[StageFolder]:
        """Return the stages from the base's child down to one."""
        parent = self.folders[stage].record.get("parent")
        return [] if parent is None else [*self.line(parent), self.folders[stage]]

    def course_of_rewards(self) -> Iterator[Row]:
        """Yield every domain's reward at the base and after each stage that leads to the later one."""
        path = ["base", *(stage.name for stage in self.line(self.scene.now))]
        for place, name in enumerate(path):
            rewards = {domain: round(value, 4) for domain, value in self.rewards_at(name).items()}
            domain = self.folders[name].record["config"]["domain"] if place else "base"
            yield {**self.row("stage", steps=place, rewards=json.dumps(rewards)), "later": domain}


class Live(Lost):
    """A scene with its model, at the later stage.

    Attributes:
        model: The live model; every measurement leaves its bits as they are.
        tokenizer: Its tokenizer.
        before: The parameters at the earlier stage, by name.
        delta: Everything between the two stages.
    """

    def __init__(self, study: StudyConfig, course: Course, scene: Scene) -> None:
        super().__init__(study, course, scene)
        self.model, self.tokenizer = load_model(course.config)
        for stage in self.line(scene.then):
            deltas.apply(self.model, stage.delta())
        self.before: dict[str, Tensor] = {n: p.detach().clone() for n, p in self.model.named_parameters()}
        then = {stage.name for stage in self.line(scene.then)}
        for stage in self.line(scene.now):
            if stage.name not in then:
                deltas.apply(self.model, stage.delta())
        self._now = {n: p.detach().clone() for n, p in self.model.named_parameters()}
        self.delta = deltas.diff(self.before, self.model)
        self.subspace = cache(self._subspace)  # for the options that a measurement asks for
        self.fisher = cache(self._fisher)

    @cached_property
    def own(self) -> deltas.Delta:
        """The earlier domain's own update."""
        return self.folders[self.scene.then].delta()

    def _fisher(self, domain: str, where: Where = "midpoint") -> Fisher:
        return fisher(
            self.model,
            domain,
            at=self.delta,
            samples=self.study.samples,
            seed=self.course.seed,
            tokenizer=self.tokenizer,
            where=where,
        )

    def _subspace(self, **options: Any) -> tuple[ConflictSubspace, float]:
        return self.subspace_of(self.delta, **options)

    def subspace_of(self, delta: deltas.Delta, **options: Any) -> tuple[ConflictSubspace, float]:
        """Solve for the conflict subspace of a delta that leads to the model as it stands.

        Returns:
            What `conflict_subspace` gives for these options of it, and the seconds that it took.
        """
        given: dict[str, Any] = {
            "restore": list(self.scene.earlier),
            "protect": list(self.scene.later),
            "samples": self.study.samples,
            "seed": self.course.seed,
            "tokenizer": self.tokenizer,
            "passes": 1,
        }
        started = time.perf_counter()
        found = conflict_subspace(self.model, delta, **{**given, **options})
        return found, time.perf_counter() - started

    def since(self, stage: str) -> deltas.Delta:
        """Return everything between an earlier stage on the way to the later one, and that one."""
        after = [one.name for one in self.line(self.scene.now)]
        parts = [self.folders[name].delta() for name in after[after.index(stage) + 1 :]]
        return reduce(deltas.Delta.then, parts)

    def moved(self) -> float:
        """Norm of how far the model is from the later stage, over the norm of δ."""
        return deltas.diff(self._now, self.model).stats().total.l2 / self.delta.stats().total.l2

    def judged(self, rule: str, **fields: Any) -> Row:
        """Measure the model as it stands: one row."""
        earlier, later = self.scene.earlier, self.scene.later
        after = rewards(self.model, self.tokenizer, count=self.study.evaluation_prompts, names=(*earlier, *later))
        return self.row(
            rule,
            after=_mean(after, earlier),
            later_after=_mean(after, later),
            regained=regained(self.then, self.now, after, earlier),
            kept=kept(self.then, self.now, after, later),
            rewards=json.dumps({name: round(value, 4) for name, value in after.items()}),
            **fields,
        )

    def tried(self, rule: str, what: Any, **fields: Any) -> Row:
        """Roll `what` back, measure, and put every bit back."""
        seed = self.course.seed
        with rollback(self.model, self.delta, what, seed=seed, strength=fields.get("strength", 1.0)) as undo:
            return self.judged(rule, norm_share=undo.report.norm_share, **fields)

    @contextmanager
    def kept_bits(self) -> Iterator[None]:
        """Put the model's bits back when the block ends."""
        now = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        try:
            yield
        finally:
            self.model.load_state_dict(now)
            self.model.eval()


def _mean(values: Rewards, names: tuple[str, ...]) -> float:
    return sum(values[name] for name in names) / len(names)
