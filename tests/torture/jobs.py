"""What the torture runs: one function a job, called in a process of its own with plain arguments."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from rlforget.weights.atomic import new_file, new_folder
from rlforget.weights.checkpoint import CheckpointWeights
from rlforget.weights.in_place import undo, write_in_place
from rlforget.weights.soundness import verify


def warm_up() -> None:
    """Import and compile what jobs need."""
    torch.set_num_threads(1)


def write_file(path: str, text: str) -> None:
    with new_file(Path(path), force=True) as file:
        file.write(text.encode())


def write_folder(path: str, text: str) -> None:
    """A folder with a file, a sub-folder and a checkpoint, so that it may be replaced."""
    with new_folder(Path(path), force=True) as folder:
        (folder / "model.safetensors").write_text(text)
        (folder / "sub").mkdir()
        (folder / "sub" / "note.txt").write_text(text)


class Change(NamedTuple):
    """Some changes of one tensor, as `write_in_place` takes them."""

    name: str
    indices: torch.Tensor
    before_bits: torch.Tensor
    after_bits: torch.Tensor


def changes(path: str | Path, other: str | Path) -> Iterator[Change]:
    """What makes the first checkpoint the second, in two ranges a tensor."""
    before, after = CheckpointWeights(Path(path)), CheckpointWeights(Path(other))
    for name in before.names():
        old, new = before.bits(name), after.bits(name)
        indices = (old != new).nonzero().flatten().int()
        for part in indices.tensor_split(2):
            yield Change(name, part, old[part.long()], new[part.long()])


def write(path: str, other: str, note: str = "") -> None:
    write_in_place(CheckpointWeights(Path(path)), changes(path, other), note=note)


def take_back(path: str) -> None:
    undo(path)


def show(path: str) -> None:
    """Open a checkpoint and print the digest of its bits."""
    print(digest(path))


def check(path: str) -> None:
    """Hold that `verify` finds nothing wrong, and that nothing is left beside it."""
    report = verify(path)
    assert report.sound, report
    print(json.dumps(report.to_dict()))


def repair(path: str) -> None:
    report = verify(path, repair=True)
    print(json.dumps(report.to_dict()))
    assert report.sound, report


def digest(path: str | Path) -> str:
    """A digest of names, dtypes, shapes and bits."""
    weights = CheckpointWeights(Path(path))
    seen = hashlib.sha256()
    for name in sorted(weights.names()):
        seen.update(f"{name} {weights.meta(name)}".encode())
        seen.update(weights.bits(name).numpy().tobytes())
    return seen.hexdigest()
