"""The folder of a run: one folder a finished stage, each of which appears whole or not at all.

- `log.jsonl`
- `stages/00-base/stage.json`
- `stages/01-code/stage.json`
- `stages/01-code/code.delta.safetensors`, the change to its parent
- `stages/01-code/adapter/`, the factors of a stage that trained one, as PEFT writes them
- `training/02-math/`, the trainer's checkpoints of the stage that is not finished yet
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlforget.delta import Delta
from rlforget.errors import ConfigError, OutputError
from rlforget.weights.atomic import new_folder

_STAGE = re.compile(r"^(\d{2,})-(.+)$")
_RECORD = "stage.json"


@dataclass(frozen=True)
class StageFolder:
    """A finished stage on disk.

    Attributes:
        index: Its place in the sequence; 0 is the base.
        name: Its name.
        path: Its folder.
        record: What `stage.json` holds.
    """

    index: int
    name: str
    path: Path
    record: dict[str, Any]

    @property
    def delta_path(self) -> Path:
        """The file of the change to its parent; the base has none."""
        return self.path / f"{self.name}.delta.safetensors"

    @property
    def adapter_path(self) -> Path:
        """The folder of the factors, of a stage that trained an adapter; `peft.PeftModel.from_pretrained` loads it."""
        return self.path / "adapter"

    def delta(self) -> Delta:
        """Load the change to its parent."""
        return Delta.load(self.delta_path)


class RunFolder:
    """The output of a sequence.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stages = path / "stages"
        self._training = path / "training"

    @property
    def log_path(self) -> Path:
        """The JSON-lines log."""
        return self.path / "log.jsonl"

    @contextmanager
    def opened(self, *, resume: bool) -> Iterator[None]:
        """Make the folder, keep other processes out of it, and clear away what a killed one left.

        Raises:
            OutputError: It cannot be written, is in use, or holds stages though `resume` is false, or other files.
        """
        try:
            self._check_ours()
            self._stages.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.path / ".lock", os.O_CREAT | os.O_RDWR)
        except OSError as fault:
            raise self._fault("a folder that can be written", str(fault), "Choose another folder.") from fault
        try:
            self._lock(lock)
            if not resume and self.finished():
                raise self._fault("an empty folder", "a run", "Resume it, or choose another folder.")
            for draft in self._stages.glob(".rlforget-*.partial"):
                shutil.rmtree(draft)
            for stage in self.finished():  # a kill between a stage's rename and the end of its checkpoints
                shutil.rmtree(self.unfinished(stage.index, stage.name), ignore_errors=True)
            yield
        finally:
            os.close(lock)  # which unlocks it

    def finished(self) -> list[StageFolder]:
        """Return the finished stages, in order, the base first.

        Raises:
            ConfigError: A stage is missing in the middle, or its record cannot be read.
        """
        found: list[StageFolder] = []
        for path in sorted(self._stages.glob("*")) if self._stages.is_dir() else []:
            if match := _STAGE.match(path.name):
                found.append(StageFolder(int(match[1]), match[2], path, _read(path / _RECORD)))
        found.sort(key=lambda stage: stage.index)
        for place, stage in enumerate(found):
            if stage.index != place:
                fix = "Put it back, or remove the later ones too."
                raise ConfigError(str(self._stages), expected=f"stage {place}", found="it missing", fix=fix)
        return found

    def unfinished(self, index: int, name: str) -> Path:
        """Return where the trainer keeps a stage until it is finished."""
        return self._training / f"{index:02d}-{name}"

    def adapter_draft(self) -> Path:
        """Return where a stage's adapter is written before the stage is."""
        return self._training / "adapter"

    def write(
        self, index: int, name: str, record: dict[str, Any], delta: Delta | None, adapter: Path | None = None
    ) -> StageFolder:
        """Write a finished stage; it is there whole, or not at all.

        Args:
            index: Its place.
            name: Its name.
            record: What `stage.json` is to hold.
            delta: The change to its parent.
            adapter: A folder of factors, copied.

        Raises:
            OutputError: The stage is there already, or the disk is full.
        """
        stage = StageFolder(index, name, self._stages / f"{index:02d}-{name}", record)
        with new_folder(stage.path) as draft:
            (draft / _RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
            if delta is not None:
                delta.save(draft / stage.delta_path.name, self_contained=True)
            if adapter is not None:
                shutil.copytree(adapter, draft / stage.adapter_path.name)
        shutil.rmtree(self._training, ignore_errors=True)
        return stage

    def _check_ours(self) -> None:
        if self.path.is_dir() and any(self.path.iterdir()) and not self._stages.is_dir():
            raise self._fault("an empty folder, or the folder of a run", "other files", "Choose another folder.")

    def _lock(self, descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as fault:
            found = "another process that writes into it"
            raise self._fault("a folder that is not in use", found, "Wait for it to end.") from fault

    def _fault(self, expected: str, found: str, fix: str) -> OutputError:
        return OutputError(str(self.path), expected=expected, found=found, fix=fix)


def _read(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as fault:
        raise _broken(path, str(fault)) from fault
    if not isinstance(record, dict):
        raise _broken(path, type(record).__name__)
    return record


def _broken(path: Path, found: str) -> ConfigError:
    fix = "Remove the stage's folder and all later ones, and resume."
    return ConfigError(str(path), expected="the record of a finished stage", found=found, fix=fix)
