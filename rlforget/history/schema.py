"""What each value of an index may be. The index may come from anywhere, so nothing in it is taken on trust."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from rlforget.history.stage import DeltaRecord, Stage, stage_id

SUFFIX = ".delta.safetensors"
RESERVED = frozenset({"HEAD", "base"})
"""Names that already mean something."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,59}")
_DELTA_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,119}" + re.escape(SUFFIX))
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", re.ASCII)
_ID = re.compile(r"[0-9a-f]{64}")
_FINGERPRINT = re.compile(r"[0-9a-f]{32}")
_STAGE_KEYS = frozenset(
    {"id", "name", "parent", "domain", "message", "time", "config", "metrics", "stats", "before", "after", "delta"}
)


class Malformed(Exception):
    """What is wrong with a value."""


def check_name(name: object) -> str:
    """Return a name that a stage or a tag may have.

    Raises:
        Malformed: It has other characters than letters, digits, `.`, `_` and `-`, begins with none of the first two,
            has more than 60, or is reserved.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise Malformed(f"a name {_shown(name)}, where letters, digits, '.', '_' and '-' go, at most 60")
    if name in RESERVED:
        raise Malformed(f"the name {name!r}, which is reserved")
    return name


def check_object(value: object, what: str) -> dict[str, Any]:
    """Return a JSON object: plain values, finite numbers, texts that UTF-8 can hold.

    Raises:
        Malformed: It is none.
    """
    if not isinstance(value, dict):
        raise Malformed(f"{what} that is no JSON object")
    _check_json(value, what)
    return value


def check_text(value: object, what: str) -> str:
    """Return a text that UTF-8 can hold.

    Raises:
        Malformed: It is none.
    """
    if not isinstance(value, str) or any("\ud800" <= letter <= "\udfff" for letter in value):
        raise Malformed(f"{what} {_shown(value)}, where text goes")
    return value


def only_keys(record: Mapping[str, Any], what: str, keys: set[str] | frozenset[str]) -> None:
    """Check that an object has these keys and no others.

    Raises:
        Malformed: It has not.
    """
    if set(record) != keys:
        raise Malformed(f"{what} with other keys than {', '.join(sorted(keys))}")


def field_of(record: Mapping[str, Any], key: str, kind: type) -> Any:
    """Return a value of a given type: `bool` is no `int` here.

    Raises:
        Malformed: It is missing or of another type.
    """
    if type(record.get(key)) is not kind:
        raise Malformed(f"{key} {_shown(record.get(key))}")
    return record[key]


def base_record(record: dict[str, Any], copied_to: str) -> dict[str, Any]:
    """Return the checked fields of the base.

    Raises:
        Malformed: One is not what it has to be.
    """
    only_keys(record, "a base", {"path", "copied", "fingerprint", "files"})
    path = check_text(field_of(record, "path", str), "a base's path")
    if not path or "\0" in path:
        raise Malformed("a base without a path")
    if field_of(record, "copied", bool) and path != copied_to:
        raise Malformed(f"a copy of the base in {_shown(path)} and not in {copied_to}")
    _matches(record, "fingerprint", _FINGERPRINT)
    for name, checksum in field_of(record, "files", dict).items():
        check_text(name, "a file name")
        if not isinstance(checksum, str) or not _ID.fullmatch(checksum):
            raise Malformed(f"a checksum of {_shown(name)}")
    return record


def stage_record(record: object, folder: str) -> Stage:
    """Return the stage that a record describes, after checking every field and the id they spell.

    Args:
        record: An object of the index.
        folder: The folder that delta files lie in.

    Raises:
        Malformed: A field is not what it has to be, or the id does not fit.
    """
    if not isinstance(record, dict):
        raise Malformed("a stage that is no JSON object")
    only_keys(record, "a stage", _STAGE_KEYS)
    for key in ("config", "metrics", "stats"):
        check_object(record[key], key)
    delta = field_of(record, "delta", dict)
    only_keys(delta, "a delta", {"file", "size", "sha256"})
    _matches(delta, "sha256", _ID)
    if field_of(delta, "size", int) < 0:
        raise Malformed("a delta's size below 0")
    stage = Stage(
        id=_matches(record, "id", _ID),
        name=check_name(record["name"]),
        parent=None if record["parent"] is None else _matches(record, "parent", _ID),
        domain=None if record["domain"] is None else check_text(record["domain"], "a domain"),
        message=check_text(record["message"], "a message"),
        time=_matches(record, "time", _TIME),
        config=record["config"],
        metrics=record["metrics"],
        stats=record["stats"],
        before=_matches(record, "before", _FINGERPRINT),
        after=_matches(record, "after", _FINGERPRINT),
        delta=DeltaRecord(_delta_file(delta, folder), delta["size"], delta["sha256"]),
    )
    if stage_id(record) != stage.id:
        raise Malformed(f"stage {stage.name!r}, whose id does not fit its record: it was altered")
    return stage


def _delta_file(delta: dict[str, Any], folder: str) -> str:
    """Return the path of a delta file, which is a plain name in the one folder that deltas lie in."""
    path: str = field_of(delta, "file", str)
    parent, name = str(PurePosixPath(path).parent), PurePosixPath(path).name
    if path != f"{folder}/{name}" or parent != folder or not _DELTA_FILE.fullmatch(name):
        raise Malformed(f"a delta file {_shown(path)} outside of {folder}/")
    return path


def _matches(record: Mapping[str, Any], key: str, pattern: re.Pattern[str]) -> str:
    value: str = field_of(record, key, str)
    if not pattern.fullmatch(value):
        raise Malformed(f"{key} {_shown(value)}")
    return value


def _check_json(value: object, what: str) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            check_text(key, f"a key of {what}")
            _check_json(item, what)
    elif isinstance(value, list):
        for item in value:
            _check_json(item, what)
    elif isinstance(value, str):
        check_text(value, f"a value of {what}")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise Malformed(f"{what} with {value}, which JSON does not have")
    elif value is not None and not isinstance(value, bool | int):
        raise Malformed(f"{what} with a {type(value).__name__}, which JSON does not have")


def _shown(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
