"""What is trained, and between which stages something was lost.

A course is a tree of stages from one base, by one method, from one seed; a scene is two stages of it: the one that an
earlier domain was good at, and a later one at which it had lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path
from typing import Literal

from rlforget.domains import miniature
from rlforget.experiments.recovery_study.config import BaseModelConfig, Method, StudyConfig
from rlforget.training import EvaluationConfig, SequenceConfig, StageConfig

Part = Literal["pairs", "sequence", "deep", "bases", "sizes"]
PARTS: tuple[Part, ...] = ("pairs", "sequence", "deep", "bases", "sizes")


@dataclass(frozen=True)
class Scene:
    """Two stages of a course.

    Attributes:
        part: The part of the study that it belongs to.
        then: The stage that had what was lost.
        now: The later stage.
        earlier: Domains to restore.
        later: Domains to protect.
    """

    part: Part
    then: str
    now: str
    earlier: tuple[str, ...]
    later: tuple[str, ...]

    @property
    def name(self) -> str:
        """What its folder is called."""
        return f"{self.part}-{self.now}"


@dataclass(frozen=True)
class Base:
    """A base on disk.

    Attributes:
        name: What tables call it.
        size: Its size.
        folder: Where it lies.
        pretrain: How to make it, where it is not there; None for one that is given.
    """

    name: str
    size: str
    folder: Path
    pretrain: BaseModelConfig | None


@dataclass(frozen=True)
class Course:
    """Stages that are trained from one base.

    Attributes:
        base: The base.
        method: Of all stages.
        seed: Of all stages.
        folder: Where they are kept, as `run_sequence` keeps them, with the measurements beside them.
        config: The stages.
        scenes: What is measured.
    """

    base: Base
    method: Method
    seed: int
    folder: Path
    config: SequenceConfig
    scenes: tuple[Scene, ...]


def courses(study: StudyConfig, out: Path, bases: Path, parts: tuple[Part, ...] = PARTS) -> list[Course]:
    """Plan the study: the courses that have a scene of one of `parts`, with those scenes alone.

    Whatever the parts, a course has all of its stages: a stage's seed is its place among them.

    Args:
        study: The configuration.
        out: The folder of the run.
        bases: The folder where bases that are pretrained lie.
        parts: The parts that are wanted.
    """
    main = _base(study.base, bases)
    wanted: dict[tuple[Base, Method, int], list[Part]] = {
        (main, method, seed): ["pairs", "sequence", "deep"] for seed in study.seeds for method in study.methods
    }
    extra: tuple[tuple[Part, list[BaseModelConfig]], ...] = (("bases", study.bases), ("sizes", study.sizes))
    for part, several in extra:
        for one in several:
            wanted.setdefault((_base(one, bases), "grpo", one.seed), []).append(part)
    found = [_course(study, *key, out, several) for key, several in wanted.items()]
    chosen = [replace(one, scenes=tuple(scene for scene in one.scenes if scene.part in parts)) for one in found]
    return [one for one in chosen if one.scenes]


def _course(study: StudyConfig, base: Base, method: Method, seed: int, out: Path, parts: list[Part]) -> Course:
    if base.pretrain is not None:
        study = study.model_copy(update={"methods": {method: study.methods[method].times(base.pretrain.rate)}})
    planned = [step for part in parts for step in _PLANS[part](study, method)]
    stages = {stage.name: stage for stage, _ in planned}  # a stage of several parts is trained once
    config = SequenceConfig(
        model=str(base.folder),
        seed=seed,
        stages=list(stages.values()),
        evaluation=EvaluationConfig(domains=study.domains, count=study.evaluation_prompts),
    )
    scenes = tuple(scene for _, scene in planned if scene is not None)
    return Course(base, method, seed, out / f"{base.name}-{method}-{seed}", config, scenes)


_Planned = Iterator[tuple[StageConfig, Scene | None]]


def _firsts(study: StudyConfig, method: Method, domains: list[str]) -> _Planned:
    length = study.methods[method].earlier
    for domain in domains:
        yield length.stage(domain, method, domain, "base"), None


def _pairs(study: StudyConfig, method: Method) -> _Planned:
    length = study.methods[method].later
    pairs = list(permutations(study.domains, 2)) if study.pairs is None else study.pairs
    yield from _firsts(study, method, [name for name in study.domains if any(name == first for first, _ in pairs)])
    for first, second in pairs:
        name = f"{first}-{second}"
        yield length.stage(second, method, name, first), Scene("pairs", first, name, (first,), (second,))


def _deep(study: StudyConfig, method: Method) -> _Planned:
    length = study.methods[method].deep
    if length is None:
        return
    yield from _firsts(study, method, list(dict.fromkeys(first for first, _ in study.deep)))
    for first, second in study.deep:
        name = f"deep-{first}-{second}"
        yield length.stage(second, method, name, first), Scene("deep", first, name, (first,), (second,))


def _sizes(study: StudyConfig, method: Method) -> _Planned:
    """One pair: all the samples then go to one domain to restore and one to protect."""
    first, last = study.domains[0], study.domains[-1]
    yield from _firsts(study, method, [first])
    scene = Scene("sizes", first, f"{first}-{last}", (first,), (last,))
    yield study.methods[method].later.stage(last, method, scene.now, first), scene


def _sequence(study: StudyConfig, method: Method, part: Part = "sequence") -> _Planned:
    """One domain after another; the last stage is the one that hurts. Half of the domains are older."""
    lengths = study.methods[method]
    half = len(study.domains) // 2
    yield from _firsts(study, method, study.domains[:1])
    names = [study.domains[0], *(f"then-{domain}" for domain in study.domains[1:])]
    for place, domain in enumerate(study.domains[1:], start=1):
        last = place == len(study.domains) - 1
        length = lengths.later if last else lengths.earlier
        older, newer = tuple(study.domains[:half]), tuple(study.domains[half:])
        scene = Scene(part, names[half - 1], names[-1], older, newer) if last else None
        yield length.stage(domain, method, names[place], names[place - 1]), scene


_PLANS: dict[Part, Callable[[StudyConfig, Method], _Planned]] = {
    "pairs": _pairs,
    "deep": _deep,
    "sequence": _sequence,
    "bases": lambda study, method: _sequence(study, method, "bases"),
    "sizes": lambda study, method: _sizes(study, method),
}


def _base(base: str | BaseModelConfig, bases: Path) -> Base:
    if isinstance(base, BaseModelConfig):
        name = f"{base.size}-{base.seed}"
        return Base(name, base.size, bases / name, base)
    shipped = base == "miniature"
    folder = miniature.path() if shipped else Path(base)
    return Base("miniature" if shipped else folder.name, "0.2M" if shipped else "", folder, None)
