"""The study from beginning to end: bases, stages, measurements, table."""

from __future__ import annotations

import json
import platform
from dataclasses import dataclass
from pathlib import Path

import torch

from rlforget.domains.miniature.build import SCORES_FILE, build
from rlforget.errors import ConfigError
from rlforget.experiments.recovery_study import measuring
from rlforget.experiments.recovery_study.config import BaseModelConfig, StudyConfig
from rlforget.experiments.recovery_study.courses import PARTS, Course, Part, courses
from rlforget.experiments.recovery_study.jobs import Job, run_jobs
from rlforget.experiments.recovery_study.page import page
from rlforget.experiments.recovery_study.pictures import draw_pictures
from rlforget.experiments.recovery_study.table import read_table, write_table
from rlforget.training import Progress, run_sequence
from rlforget.training.progress import Silent
from rlforget.training.run_folder import RunFolder
from rlforget.weights.atomic import new_file, new_folder

TABLE, PAGE, PICTURES, SETTINGS = "results.csv", "results.md", "images", "study.json"
_FIXED = ("domains", "methods", "evaluation_prompts", "samples", "few", "budgets", "refresh_steps")


@dataclass(frozen=True)
class Count:
    """How many there are of something, and how many are done already."""

    all: int
    done: int


def plan_of(study: StudyConfig, out: Path, *, bases: Path, parts: tuple[Part, ...] = PARTS) -> dict[str, Count]:
    """Count what a study is made of, and what of it is in `out` already.

    A base that is given and not pretrained counts as done; the base that a sequence keeps does not count as a stage.

    Raises:
        ConfigError: The study in `out` was made with other settings.
    """
    _check_settings(study, out)
    planned = courses(study, out, bases, parts)
    pretraining = [_pretraining(one) for one in _unique_bases(planned)]
    given = len({course.base for course in planned}) - len(pretraining)
    trained = {course.folder: max(0, _training(course).done() - 1) for course in planned}
    measured = [
        (job := measuring.job(study, course, scene)).done() == job.pieces
        for course in planned
        if trained[course.folder] == len(course.config.stages)  # what is measured depends on what was lost
        for scene in course.scenes
    ]
    return {
        "bases": Count(given + len(pretraining), given + sum(job.done() for job in pretraining)),
        "stages": Count(sum(len(course.config.stages) for course in planned), sum(trained.values())),
        "scenes": Count(sum(len(course.scenes) for course in planned), sum(measured)),
    }


def run_study(
    study: StudyConfig,
    out: Path,
    *,
    bases: Path,
    parts: tuple[Part, ...] = PARTS,
    processes: int = 1,
    progress: Progress,
    command: str,
) -> list[Path]:
    """Do what is not in `out` yet.

    Args:
        study: What to run.
        out: The folder of the run; killed at any time, it goes on at the first piece that is not finished.
        bases: The folder of the bases that are pretrained.
        parts: The parts to run.
        processes: How many pieces are worked on at a time.
        progress: Told of every piece.
        command: What the page says that made it.

    Returns:
        The files that were written: see `write_page`.

    Raises:
        ConfigError: The study in `out` was made with other settings.
        RlforgetError: As `run_sequence` and the rules that are tried.
    """
    _check_settings(study, out)
    planned = courses(study, out, bases, parts)
    out.mkdir(parents=True, exist_ok=True)
    with new_file(out / SETTINGS, force=True) as file:
        file.write((study.model_dump_json(indent=1) + "\n").encode())
    run_jobs("bases", [_pretraining(one) for one in _unique_bases(planned)], processes=processes, progress=progress)
    run_jobs("stages", [_training(one) for one in planned], processes=processes, progress=progress)
    scenes = [measuring.job(study, course, scene) for course in planned for scene in course.scenes]
    run_jobs("measurements", scenes, processes=processes, progress=progress)
    return write_page(study, out, bases=bases, command=command)


def write_page(study: StudyConfig, out: Path, *, bases: Path, command: str) -> list[Path]:
    """Write the table of all that has been measured in `out`, the pictures and the page.

    Returns:
        The files.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    write_table(measuring.collected(courses(study, out, bases)), out / TABLE)
    rows = read_table(out / TABLE)
    drawn = draw_pictures(rows, out / PICTURES)
    settings = study.model_dump(mode="json")
    told = page(rows, settings, command, _versions(), {name: f"{PICTURES}/{path.name}" for name, path in drawn.items()})
    with new_file(out / PAGE, force=True) as file:
        file.write(told.encode())
    return [out / TABLE, out / PAGE, *drawn.values()]


def _versions() -> str:
    import transformers
    import trl

    import rlforget

    several = {"rlforget": rlforget.__version__} | {m.__name__: m.__version__ for m in (torch, transformers, trl)}
    told = ", ".join(f"{name} {version}" for name, version in several.items())
    return f"{told}; {platform.system()} {platform.machine()}, Python {platform.python_version()}"


def _check_settings(study: StudyConfig, out: Path) -> None:
    """Hold that what is measured already was measured as it would be now."""
    path = out / SETTINGS
    if not path.exists():
        return
    then, now = json.loads(path.read_text(encoding="utf-8")), study.model_dump(mode="json")
    for key in _FIXED:
        if then.get(key) != now[key]:
            raise ConfigError(
                f"key {key}",
                expected=f"{then.get(key)}, as when {out} was made",
                found=str(now[key]),
                fix="Change it back, or choose another output folder.",
            )


def _unique_bases(planned: list[Course]) -> list[tuple[BaseModelConfig, Path]]:
    return list({c.base.folder: (c.base.pretrain, c.base.folder) for c in planned if c.base.pretrain}.values())


def _pretraining(base: tuple[BaseModelConfig, Path]) -> Job:
    settings, folder = base
    return Job(_pretrain, (settings, folder), lambda: int((folder / SCORES_FILE).exists()), 1)


def _pretrain(base: BaseModelConfig, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with new_folder(folder) as draft:
        build(base.seed, draft, size=base.size)


def _training(course: Course) -> Job:
    pieces = 1 + len(course.config.stages)
    return Job(_train, (course,), lambda: len(RunFolder(course.folder).finished()), pieces)


def _train(course: Course) -> None:
    run_sequence(course.config, course.folder, progress=Silent())
