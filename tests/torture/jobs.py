"""What the torture runs: one function a job, called in a process of its own with plain arguments."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import typer

from rlforget.cli.app import app
from rlforget.delta import Delta
from rlforget.delta.file import DeltaFile
from rlforget.delta.in_place import write_difference
from rlforget.history import History
from rlforget.interference import Coordinates
from rlforget.recovery import rollback
from rlforget.weights import open_weights, records
from rlforget.weights.atomic import new_file, new_folder
from rlforget.weights.checkpoint import CheckpointWeights
from rlforget.weights.in_place import undo, write_in_place
from rlforget.weights.soundness import verify

_PROGRAM = typer.main.get_command(app)  # once: to build it takes longer than most commands here


def cli(*words: str) -> None:
    """Run a command of the program."""
    _PROGRAM.main(list(words), prog_name="rlforget")


def several(work: str, commands: list[tuple[list[str], list[int]]]) -> None:
    """Run commands of the program, hold that their exit codes are among those given, and print what is there then."""
    for words, codes in commands:
        try:
            cli(*words)
            code = 0
        except SystemExit as ending:
            code = ending.code if isinstance(ending.code, int) else bool(ending.code)
        assert code in codes, (words, code)
    see(work)


def copy(source: str, target: str) -> None:
    shutil.copytree(source, target)


def roll_back(path: str, inputs: str) -> None:
    """A rollback of live weights, written in place, as `rlforget rollback --in-place` does."""
    delta = Delta.load(f"{inputs}/one.delta.safetensors", base=f"{inputs}/base")
    opened = CheckpointWeights(Path(path))
    live = {name: opened.tensor(name).clone() for name in opened.names()}
    coordinates = Coordinates({name: one.indices[::2] for name, one in delta.items() if one.changed})
    rollback(live, delta, coordinates)
    write_difference(opened, open_weights(live), note="rollback")


def half_write(path: str, inputs: str) -> None:
    """Leave a checkpoint as a write that was cut short does: with a record, and some of its bits written."""
    folder = Path(path)
    write_in_place(CheckpointWeights(folder), changes(folder, f"{inputs}/tuned"))
    assert records.as_unfinished(folder, 1) is not None
    shards = sorted(folder.glob("*.safetensors"))
    shards[0].write_bytes(Path(inputs, "base", shards[0].name).read_bytes())


def orphan(history: str) -> None:
    """Leave a delta that no stage names, as a killed commit does."""
    (known, *_) = sorted(Path(history, "deltas").iterdir())
    shutil.copyfile(known, known.with_name("0009-gone.delta.safetensors"))


def see(work: str) -> None:
    """Print what a user finds in a folder: every checkpoint, history and delta there, each read whole."""
    found = {path.name: _seen(path) for path in sorted(Path(work).iterdir()) if not path.name.startswith(".")}
    print(f"SEEN {json.dumps({name: one for name, one in found.items() if one is not None})}")


def _seen(path: Path) -> object:
    if (path / "history.json").exists():
        history = History.open(path)
        assert history.verify().sound, history.verify()
        stages = [[one.name, one.before, one.after, one.delta.sha256] for one in history.stages]
        names = {stage.id: stage.name for stage in history.stages}
        return {
            "base": history.base.fingerprint,
            "stages": stages,
            "tags": {t: names[i] for t, i in history.tags.items()},
        }
    if path.name == "h":
        return None  # a folder is no history without an index, whatever lies there already
    if path.is_dir():
        others = sorted(file for file in path.iterdir() if file.is_file())
        opened = digest(path)  # before the files are read: it puts right what is half done
        return {"weights": opened, "files": {file.name: _sha(file) for file in others}}
    return {"delta": DeltaFile(path).fingerprint_after, "file": _sha(path)}


def _sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


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


def write_carelessly(path: str, other: str) -> None:
    """Copy another checkpoint's files over those of this one."""
    for file in Path(other).glob("*.safetensors"):
        Path(path, file.name).write_bytes(file.read_bytes())


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
