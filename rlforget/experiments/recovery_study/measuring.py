"""Which measurement is made in which scene, and the file that its rows are kept in."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from rlforget.experiments.recovery_study import (
    curves,
    damages,
    growth,
    other_rules,
    refreshes,
    rounding,
    rules,
    searching,
)
from rlforget.experiments.recovery_study.config import StudyConfig
from rlforget.experiments.recovery_study.courses import Course, Part, Scene
from rlforget.experiments.recovery_study.jobs import Job
from rlforget.experiments.recovery_study.scene import Live, Lost, Row
from rlforget.weights.atomic import new_file

Measure = Callable[[Live], Iterable[Row]]

MEASURES: dict[str, Measure] = {
    **rules.MEASURES,
    **rules.OF_SEVERAL,
    **rounding.MEASURES,
    **refreshes.MEASURES,
    **damages.MEASURES,
    **other_rules.MEASURES,
    **curves.MEASURES,
    **searching.MEASURES,
    **growth.MEASURES,
}
"""Every measurement by its name, which its file is called by too."""

_RULES = tuple(rules.MEASURES)
_OF_A_PAIR = (*damages.MEASURES, *_RULES, *refreshes.MEASURES)

IN_PART: dict[Part, tuple[str, ...]] = {
    "pairs": (*_OF_A_PAIR, *other_rules.MEASURES, *curves.MEASURES, *rounding.MEASURES, *searching.MEASURES),
    "deep": (*_RULES, "refresh", "protected"),
    "sequence": (*_RULES, *rules.OF_SEVERAL),
    "bases": (*_RULES, *rules.OF_SEVERAL),
    "sizes": tuple(growth.MEASURES),
}
"""The measurements of the scenes of each part, the main ones first."""

OF_ANY_LOSS = tuple(damages.MEASURES)
"""Measurements that need no share: made where little was lost too."""


def folder_of(course: Course, scene: Scene) -> Path:
    """Return the folder of a scene's rows."""
    return course.folder / "measured" / scene.name


def wanted(study: StudyConfig, course: Course, scene: Scene) -> list[str]:
    """Return the measurements of a scene: those of shares only where enough was lost and gained to share out."""
    counts = Lost(study, course, scene).counts
    names = [name for name in IN_PART[scene.part] if counts or name in OF_ANY_LOSS]
    return ["lost", *(name for name in names if _is_turn(study, course, scene, name))]


def _is_turn(study: StudyConfig, course: Course, scene: Scene, name: str) -> bool:
    """Whether it is this seed's turn: a costly measurement is made in one pair of so many, another one every seed.

    Turns go by the pairs that it can be made in.
    """
    every = study.one_in.get(name, 1)
    if every == 1 or scene.part != "pairs":
        return True
    possible = [one for one in course.scenes if one.part == "pairs"]
    if name not in OF_ANY_LOSS:
        possible = [one for one in possible if Lost(study, course, one).counts]
    pairs = [one.name for one in possible]
    return (pairs.index(scene.name) + study.seeds.index(course.seed)) % every == 0


def job(study: StudyConfig, course: Course, scene: Scene) -> Job:
    """Plan the measurements of one scene, whose stages are trained."""
    folder, names = folder_of(course, scene), wanted(study, course, scene)
    return Job(
        _measure, (study, course, scene), lambda: sum((folder / f"{name}.jsonl").exists() for name in names), len(names)
    )


def _measure(study: StudyConfig, course: Course, scene: Scene) -> None:
    folder = folder_of(course, scene)
    folder.mkdir(parents=True, exist_ok=True)
    missing = [name for name in wanted(study, course, scene) if not (folder / f"{name}.jsonl").exists()]
    if "lost" in missing:
        lost = Lost(study, course, scene)
        _write(folder / "lost.jsonl", [lost.row("none"), *lost.course_of_rewards()])
        missing.remove("lost")
    if not missing:
        return
    live = Live(study, course, scene)
    for name in missing:
        started = time.perf_counter()
        rows = list(MEASURES[name](live))
        seconds = time.perf_counter() - started
        _write(folder / f"{name}.jsonl", [{**row, "measure": name, "measure_seconds": seconds} for row in rows])


def _write(path: Path, rows: list[Row]) -> None:
    """Write rows; that the file is there says that they are all in it."""
    with new_file(path) as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows).encode())


def collected(planned: list[Course]) -> list[Row]:
    """Read the rows of every scene that has been measured, in the order of the plan."""
    rows: list[Row] = []
    for course in planned:
        for scene in course.scenes:
            for path in sorted(folder_of(course, scene).glob("*.jsonl")):
                rows += [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return rows
