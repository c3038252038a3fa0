"""Where an unfinished stage is kept, so that a killed one goes on from the trainer's last checkpoint.

The checkpoints are transformers' own: weights as safetensors; optimizer, schedule and random states as torch files,
which transformers loads without running code from them. A checkpoint counts once `course.json` is in it, which is
written last, after everything else is on disk: what a killed process left half-written has none.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlforget.errors import ConfigError, OutputError
from rlforget.training.watch import Course, Watch
from rlforget.weights.atomic import new_file, sync, sync_folder
from rlforget.weights.drafts import clear_leftovers
from rlforget.weights.ranks import from_first, wait

_COURSE = "course.json"
_PLAN = "plan.json"
_KEPT = 2  # one whole while the next is written


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that is whole.

    Attributes:
        path: Its folder.
        step: Optimizer steps taken.
        course: How the stage went so far.
        seconds: What it took so far.
    """

    path: Path
    step: int
    course: Course
    seconds: float


class Checkpoints:
    """The folder of an unfinished stage.

    Args:
        path: The folder; made where it is not there.
        every: Optimizer steps from one checkpoint to the next.
        plan: What the stage does, as plain values. Checkpoints of another plan are removed; but for `processes`, how
            many shared the work: that many have to go on.

    Raises:
        ConfigError: Another number of processes began the stage.
        OutputError: The folder holds something else.
    """

    def __init__(self, path: Path, every: int, plan: Mapping[str, Any]) -> None:
        self.path, self.every = path, every
        path.mkdir(parents=True, exist_ok=True)
        clear_leftovers(path)
        if any(path.iterdir()):
            _check_plan(path, plan)
        _write(path / _PLAN, plan)

    def latest(self) -> Checkpoint | None:
        """Return the newest checkpoint that is whole, and remove the others that claim to be newer."""
        for folder in sorted(self.path.glob("checkpoint-*"), key=_step, reverse=True):
            if (text := _text(folder / _COURSE)) is not None:
                held = json.loads(text)
                return Checkpoint(folder, _step(folder), Course(**held["course"]), held["seconds"])
            shutil.rmtree(folder)
        return None

    def arguments(self) -> dict[str, Any]:
        """Return the trainer's arguments that make it save."""
        return {"save_strategy": "steps", "save_steps": self.every, "save_total_limit": _KEPT}

    def complete(self, step: int, course: Course, seconds: float) -> None:
        """Note that the trainer has written the checkpoint of a step: from now on it counts."""
        folder = self.path / f"checkpoint-{step}"
        for file in folder.iterdir():
            sync(file)
        sync_folder(self.path)
        _write(folder / _COURSE, {"course": asdict(course), "seconds": seconds})


def completing(checkpoints: Checkpoints, watch: Watch) -> Any:
    """Build the transformers `TrainerCallback` that completes what the trainer saves."""
    from transformers import TrainerCallback

    class _Saving(TrainerCallback):  # type: ignore[misc]
        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            wait()  # each process writes its own random states
            if control.should_training_stop and state.global_step < state.max_steps:
                return  # from here a resumed stage would train on: from the one before it comes to the same end
            from_first(lambda: checkpoints.complete(state.global_step, watch.course, watch.seconds()))

    return _Saving()


def _check_plan(path: Path, plan: Mapping[str, Any]) -> None:
    """Hold a folder to be of this plan, or clear it of another's checkpoints."""
    text = _text(path / _PLAN)
    if text is None:
        raise OutputError(
            str(path), expected="an empty folder, or a stage's checkpoints", found="other files", fix="Choose another."
        )
    then = json.loads(text)
    if then == plan:
        return
    if {**then, "processes": plan.get("processes")} == plan:
        raise ConfigError(
            str(path),
            expected=f"{then['processes']} processes, as the stage was begun with: its random states are theirs",
            found=str(plan["processes"]),
            fix="Start as many, or remove the folder to begin the stage again.",
        )
    for folder in path.glob("checkpoint-*"):
        shutil.rmtree(folder)


def _step(folder: Path) -> int:
    number = folder.name.partition("-")[2]
    return int(number) if number.isdecimal() else -1


def _write(path: Path, values: Mapping[str, Any]) -> None:
    """Write values as JSON; what was there stays until all of it is on disk."""
    with new_file(path, force=True) as file:
        file.write(json.dumps(values, sort_keys=True).encode())


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
