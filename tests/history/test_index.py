"""The index: written whole, read strictly."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlforget.errors import HistoryError
from rlforget.history.index import read_index, write_index
from rlforget.history.stage import stage_id
from tests.history.made import BASE, edited, made_index, made_stage, write_made

PARENTS = {"code": None, "math": "code", "qa": "math", "other": "code"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_made(tmp_path / "history", made_index(PARENTS, tags={"best": "math"}))


def test_what_is_written_is_read(folder: Path) -> None:
    index = made_index(PARENTS, tags={"best": "math"})
    assert read_index(folder) == index
    assert [stage.name for stage in index.children(index.stages[0])] == ["math", "other"]
    assert index.tags_of(index.stages[1]) == ["best"]
    assert json.loads((folder / "history.json").read_text()).keys() == {"format", "version", "base", "tags", "stages"}


def test_an_id_is_a_checksum_anyone_can_make(folder: Path) -> None:
    raw = json.loads((folder / "history.json").read_text())
    assert all(stage_id(stage) == stage["id"] for stage in raw["stages"])
    assert len({stage["id"] for stage in raw["stages"]}) == len(PARENTS)


def resigned(raw: Any, place: int, **changes: Any) -> None:
    """Change a stage and give it the id that then fits; those after it keep the old one as their parent."""
    stage = raw["stages"][place]
    stage.update(changes)
    stage["id"] = stage_id(stage)


def delta(raw: Any, place: int, **changes: Any) -> None:
    resigned(raw, place, delta={**raw["stages"][place]["delta"], **changes})


DAMAGE: dict[str, Callable[[Any], object]] = {
    "another format": lambda raw: raw.update(format="git"),
    "a later version": lambda raw: raw.update(version=2),
    "a version that is true": lambda raw: raw.update(version=True),
    "an unknown key": lambda raw: raw.update(more=1),
    "no base": lambda raw: raw.pop("base"),
    "a base that is a list": lambda raw: raw.update(base=[]),
    "a base without a path": lambda raw: raw["base"].update(path=""),
    "a copy elsewhere": lambda raw: raw["base"].update(copied=True),
    "a fingerprint that is none": lambda raw: raw["base"].update(fingerprint="x" * 32),
    "stages that are an object": lambda raw: raw.update(stages={}),
    "a stage that is a number": lambda raw: raw["stages"].append(1),
    "a record altered": lambda raw: raw["stages"][0].update(message="trained more"),
    "an id altered": lambda raw: raw["stages"][3].update(id="0" * 64),
    "a parent that is not there": lambda raw: resigned(raw, 1, parent="0" * 64),
    "a child before its parent": lambda raw: raw["stages"].reverse(),
    "other weights than the parent's": lambda raw: resigned(raw, 3, before="f" * 32),
    "a stage twice": lambda raw: raw["stages"].append(raw["stages"][3]),
    "a name twice": lambda raw: resigned(raw, 3, name="math"),
    "a reserved name": lambda raw: resigned(raw, 3, name="HEAD"),
    "a name with a slash": lambda raw: resigned(raw, 3, name="../x"),
    "a name with an escape": lambda raw: resigned(raw, 3, name="a\x1b[2J"),
    "a message that no terminal can show": lambda raw: resigned(raw, 3, message="\ud800"),
    "a time that is none": lambda raw: resigned(raw, 3, time="yesterday"),
    "metrics that are a list": lambda raw: resigned(raw, 3, metrics=[]),
    "a delta above": lambda raw: delta(raw, 3, file="../x.delta.safetensors"),
    "a delta far above": lambda raw: delta(raw, 3, file="deltas/../../x.delta.safetensors"),
    "an absolute delta": lambda raw: delta(raw, 3, file="/etc/x.delta.safetensors"),
    "a delta below": lambda raw: delta(raw, 3, file="deltas/a/x.delta.safetensors"),
    "a delta of another kind": lambda raw: delta(raw, 3, file="deltas/passwd"),
    "a hidden delta": lambda raw: delta(raw, 3, file="deltas/.x.delta.safetensors"),
    "a delta file that two share": lambda raw: delta(raw, 3, file=raw["stages"][0]["delta"]["file"]),
    "a size below 0": lambda raw: delta(raw, 3, size=-1),
    "a size that is true": lambda raw: delta(raw, 3, size=True),
    "a tag of no stage": lambda raw: raw["tags"].update(new="0" * 64),
    "a tag of a stage's name": lambda raw: raw["tags"].update(math=raw["stages"][0]["id"]),
    "a tag of a list": lambda raw: raw["tags"].update(new=[]),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named(damage: str, folder: Path) -> None:
    edited(folder, DAMAGE[damage])
    with pytest.raises(HistoryError, match=r"history\.json"):
        read_index(folder)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"{",
        b"[" * 100_000,
        b'{"format": NaN}',
        b'{"format": 1, "format": 1}',
        b'{"format": "rlforget.history", "version": 1' + b"0" * 5000 + b"}",
    ],
    ids=range(9),
)
def test_what_is_no_index_is_named(text: bytes, folder: Path) -> None:
    (folder / "history.json").write_bytes(text)
    with pytest.raises(HistoryError, match=r"history\.json"):
        read_index(folder)


def test_a_number_that_json_does_not_have(folder: Path) -> None:
    path = folder / "history.json"
    path.write_text(path.read_text().replace('"math": 0.5', '"math": 1e999'))
    with pytest.raises(HistoryError, match=r"history\.json"):
        read_index(folder)


def test_what_is_no_plain_file_is_named(folder: Path) -> None:
    path = folder / "history.json"
    shutil.move(path, folder / "elsewhere.json")
    with pytest.raises(HistoryError, match="init"):
        read_index(folder)
    path.symlink_to("elsewhere.json")
    with pytest.raises(HistoryError):
        read_index(folder)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(HistoryError, match="plain file"):
        read_index(folder)
    path.unlink()
    path.mkdir()
    with pytest.raises(HistoryError):
        read_index(folder)


def test_what_could_not_be_read_is_not_written(folder: Path) -> None:
    before = (folder / "history.json").read_bytes()
    index = read_index(folder)
    for stage in (made_stage(9, "a/b", None), made_stage(9, "math", None)):
        with pytest.raises(HistoryError, match="Give other values"):
            write_index(folder, index.with_stage(stage))
    assert (folder / "history.json").read_bytes() == before


def test_every_character_that_text_may_have_survives(tmp_path: Path) -> None:
    message = "".join(map(chr, range(0x20))) + "é\u2028\U0001f600\x7f"
    index = made_index({})
    index = index.with_stage(made_stage(1, "math", None, message=message, domain="größe"))
    assert read_index(write_made(tmp_path / "h", index)).stages[0].message == message
    assert index.base == BASE
