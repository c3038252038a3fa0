"""Histories that are damaged with knowledge of their structure: index, deltas, base, and what kind of file each is."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlforget.history.stage import stage_id

ODD: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 2**31, 2**63, 10**400, 0.5, 1e308, [], {}, [[]], {"a": {}}, "", "x", "HEAD", "base"),
    *("0" * 64, "f" * 32, "\ud800", "\x00", "\x1b[2J", "é" * 70, "a" * 5000, "~", "a~1", "-rf", "2026-01-01T00:00:00Z"),
    *(
        "..",
        "../elsewhere",
        "/",
        "/etc",
        "/dev/zero",
        "/dev/stdin",
        "deltas",
        "base/../../elsewhere",
        "../history",
        ".",
    ),
)
"""Values that may stand where another is expected."""

PATHS = (
    *("../outside/x.delta.safetensors", "deltas/../../outside/x.delta.safetensors", "deltas/x/y.delta.safetensors"),
    *("/tmp/x.delta.safetensors", "deltas/.delta.safetensors", "deltas/..delta.safetensors", "base/model.safetensors"),
    *("deltas//0001-a.delta.safetensors", "./deltas/0001-a.delta.safetensors", "deltas/0001-a.delta.safetensors/"),
    *("deltas\\0001-a.delta.safetensors", "deltas/0001-a.delta.safetensors\x00", "DELTAS/0001-a.delta.safetensors"),
)
"""Paths of delta files, none of which is one."""


@dataclass
class Case:
    """A history that is being changed.

    Attributes:
        folder: Its folder.
        raw: Its index.
        text: The text to write in place of `raw`, if there is one.
    """

    folder: Path
    raw: Any
    text: bytes | None = None

    def file(self, rng: random.Random) -> Path:
        """Choose a delta or a file of the base, to be altered; never one that a link leads to."""
        folders = [folder for name in ("deltas", "base") if not (folder := self.folder / name).is_symlink()]
        files = sorted(path for folder in folders for path in folder.glob("*") if not path.is_symlink())
        return rng.choice(files)


NOTHING_THERE = (AttributeError, TypeError, KeyError, IndexError, ValueError, OSError)
"""What is raised where an earlier change left nothing to change."""


# -- changes -----------------------------------------------------------------------------------------------------------


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Return every (container, key) under a value."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    found: list[tuple[Any, Any]] = []
    for key in keys:
        found += [(value, key), *_places(value[key])]
    return found


def _place(case: Case, rng: random.Random) -> tuple[Any, Any]:
    return rng.choice(_places(case.raw))


def _odd(case: Case, rng: random.Random) -> None:
    container, key = _place(case, rng)
    container[key] = copy.deepcopy(rng.choice(ODD))


def _edited(case: Case, rng: random.Random) -> None:
    """Change a digit, a letter or a sign of a value."""
    container, key = _place(case, rng)
    value = container[key]
    if isinstance(value, str) and value:
        at = rng.randrange(len(value))
        container[key] = (
            value[:at] + rng.choice(["", "0", "f", "g", "/", ".", "A", "\n"]) + value[at + rng.randrange(2) :]
        )
    elif isinstance(value, bool | int | float):
        container[key] = rng.choice([value + 1, value - 1, -value, float(value), str(value)])


def _dropped(case: Case, rng: random.Random) -> None:
    container, key = _place(case, rng)
    del container[key]


def _added(case: Case, rng: random.Random) -> None:
    container, key = _place(case, rng)
    if isinstance(container, list):
        container.insert(key, rng.choice([copy.deepcopy(container[key]), rng.choice(ODD)]))
    else:
        container[rng.choice(["", "more", "id", "parent", "\ud800", str(key) + " "])] = rng.choice([container[key], 1])


def _swapped(case: Case, rng: random.Random) -> None:
    (one, first), (other, second) = _place(case, rng), _place(case, rng)
    one[first], other[second] = copy.deepcopy(other[second]), copy.deepcopy(one[first])


def _stages(case: Case, rng: random.Random) -> None:
    """Put stages in another order, twice, or under other parents."""
    stages = case.raw["stages"]
    kind = rng.randrange(4)
    if kind == 0:
        rng.shuffle(stages)
    elif kind == 1:
        stages.append(json.loads(json.dumps(rng.choice(stages))))
    elif kind == 2:
        rng.choice(stages)["parent"] = rng.choice([None, *(stage["id"] for stage in stages)])
    else:
        child = rng.choice(stages)
        parent = rng.choice(stages)
        child["parent"], child["before"] = parent["id"], parent["after"]


def _path(case: Case, rng: random.Random) -> None:
    rng.choice(case.raw["stages"])["delta"]["file"] = rng.choice(PATHS)


def _base(case: Case, rng: random.Random) -> None:
    case.raw["base"]["path"] = rng.choice(ODD)
    case.raw["base"]["copied"] = rng.random() < 0.3


def _tags(case: Case, rng: random.Random) -> None:
    case.raw["tags"][rng.choice(["best", "a", "HEAD", "x" * 99, "../x"])] = rng.choice([case.raw["stages"][0]["id"], 1])


def _text(case: Case, rng: random.Random) -> None:
    """Change the text behind the JSON."""
    text = bytearray(json.dumps(case.raw).encode())
    kind = rng.randrange(8)
    place = rng.randrange(len(text))
    if kind == 0:
        text = text[:place]
    elif kind == 1:
        text[place] = rng.randrange(256)
    elif kind == 2:
        text[place:place] = rng.choice([b"[", b"{", b'"', b"\\", b"\xff", b"\x00", b"NaN", b"1" * 5000])
    elif kind == 3:
        text = bytearray(rng.choice([b"[", b'{"a":']) * rng.choice([10, 10_000, 1_000_000]))
    elif kind == 4:
        text = bytearray(rng.choice([b"", b"null", b"[]", b"{}", b"1", b'""', b"\xef\xbb\xbf" + bytes(text)]))
    elif kind == 5:
        text = bytearray(text.replace(b'"tags"', b'"tags": {}, "tags"'))
    elif kind == 6:
        text = bytearray(text.replace(b"0.5", rng.choice([b"1e999", b"NaN", b"-Infinity", b"0." + b"5" * 10_000])))
    else:
        text = bytearray(rng.randbytes(rng.randrange(300)))
    case.text = bytes(text)


def _content(case: Case, rng: random.Random) -> None:
    """Change bytes of a delta, or of the base."""
    path = case.file(rng)
    if not path.is_file():
        return  # a pipe, after another change
    data = bytearray(path.read_bytes())
    place = rng.randrange(len(data))
    kind = rng.randrange(3)
    if kind == 0:
        data[place] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del data[place:]
    else:
        data[place:place] = rng.randbytes(rng.randrange(1, 9))
    path.write_bytes(data)


def _kind(case: Case, rng: random.Random) -> None:
    """Put a link, a folder, a pipe or nothing in the place of a file or folder, or another delta."""
    path = case.file(rng)
    if rng.random() < 0.2:
        path = path.parent
    elsewhere = case.folder.parent / "outside" / ("x.delta.safetensors" if path.suffix else "")
    deltas = sorted(case.folder.glob("deltas/*"))
    kind = rng.randrange(5)
    content = b""
    if kind == 0:
        content = next(delta.read_bytes() for delta in deltas[rng.randrange(len(deltas)) :] if delta.is_file())
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    if kind == 0 and path.parent.is_dir() and path.suffix:
        path.write_bytes(content)
    elif kind == 1:
        path.symlink_to(elsewhere)
    elif kind == 2:
        path.mkdir()
    elif kind == 3:
        os.mkfifo(path)


CHANGES: dict[str, Callable[[Case, random.Random], None]] = {
    "odd value": _odd,
    "edited value": _edited,
    "dropped": _dropped,
    "added": _added,
    "swapped": _swapped,
    "stages": _stages,
    "delta path": _path,
    "base path": _base,
    "tags": _tags,
    "text": _text,
    "content": _content,
    "kind of file": _kind,
}


def fitted(case: Case) -> None:
    """Make ids fit records again, and records the deltas that they name; what is no record is left."""
    renamed: dict[Any, str] = {}
    for stage in case.raw["stages"]:
        if stage["parent"] in renamed:
            stage["parent"] = renamed[stage["parent"]]
        path = case.folder / str(stage["delta"]["file"])
        if path.parent == case.folder / "deltas" and path.is_file() and not path.is_symlink():
            data = path.read_bytes()
            stage["delta"].update(size=len(data), sha256=hashlib.sha256(data).hexdigest())
        old, stage["id"] = stage["id"], stage_id(stage)
        renamed[old] = stage["id"]
    tags = case.raw["tags"]
    tags.update({tag: renamed.get(target, target) for tag, target in tags.items()})


def damaged(folder: Path, rng: random.Random) -> list[str]:
    """Change one to three things in a history; return what."""
    case = Case(folder, json.loads((folder / "history.json").read_text()))
    names = rng.choices(list(CHANGES), k=rng.choice((1, 1, 1, 2, 3)))
    for name in names:
        try:
            CHANGES[name](case, rng)
        except NOTHING_THERE:
            names = [*names, "nothing more"]
    if rng.random() < 0.5:
        with suppress(*NOTHING_THERE):
            fitted(case)
    path = folder / "history.json"
    path.write_bytes(case.text if case.text is not None else json.dumps(case.raw).encode())
    return names
