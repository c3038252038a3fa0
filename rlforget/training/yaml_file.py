"""YAML files held to a schema; a fault is named by its key and line."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from rlforget.errors import ConfigError
from rlforget.training.config import SequenceConfig

Schema = TypeVar("Schema", bound=BaseModel)
Location = tuple[str | int, ...]

_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "a string",
    "list_type": "a list",
    "too_short": "at least one item",
    "string_pattern_mismatch": "a name of letters, digits, '.', '_' and '-'",
    "model_type": "a mapping of keys to values",
    "model_attributes_type": "a mapping of keys to values",
}


class _Loader(yaml.SafeLoader):
    """YAML 1.1 but for numbers: `1e-3` is one, as in YAML 1.2 and in every programmer's mind."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)$"),
    list("-+.0123456789"),
)


def load_config(path: str | Path) -> SequenceConfig:
    """Read a sequence's YAML file.

    Raises:
        ConfigError: The file cannot be read, is no YAML, or does not fit the schema; the message names the key, its
            line and what was expected.
    """
    return load_yaml(Path(path), SequenceConfig)


def load_yaml(path: Path, schema: type[Schema]) -> Schema:
    """Read a YAML file into a pydantic model.

    Raises:
        ConfigError: As `load_config`.
    """
    lines: dict[Location, int] = {(): 1}
    try:
        node = yaml.compose(path.read_text(encoding="utf-8"), _Loader)
        values = _construct(node, (), lines, path) if node is not None else {}
    except (OSError, UnicodeDecodeError) as fault:
        raise _fault(str(path), "a readable UTF-8 file", str(fault), "Check the path.") from fault
    except (yaml.YAMLError, ValueError, RecursionError) as fault:
        mark = getattr(fault, "problem_mark", None)
        where = f"{path}, line {mark.line + 1}" if mark else str(path)
        raise _fault(where, "YAML", getattr(fault, "problem", None) or str(fault), "Mend the file.") from fault
    try:
        return schema.model_validate(values)
    except ValidationError as faults:
        raise _first_fault(path, schema, faults, lines) from None


def _construct(node: yaml.Node, where: Location, lines: dict[Location, int], path: Path) -> Any:
    """Build the Python value of `node`, and note the line of every key in `lines`."""
    lines.setdefault(where, node.start_mark.line + 1)
    if isinstance(node, yaml.SequenceNode):
        return [_construct(item, (*where, i), lines, path) for i, item in enumerate(node.value)]
    if not isinstance(node, yaml.MappingNode):
        return _Loader("").construct_object(node)
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key, line = str(key_node.value), key_node.start_mark.line + 1
        if key in values:
            first = lines[(*where, key)]
            name = _dotted((*where, key))
            raise _fault(f"{path}, line {line}, key {name}", "each key once", f"it on line {first} too", "Remove one.")
        lines[(*where, key)] = line
        values[key] = _construct(value_node, (*where, key), lines, path)
    return values


def _first_fault(
    path: Path, schema: type[BaseModel], faults: ValidationError, lines: dict[Location, int]
) -> ConfigError:
    """Turn the fault that comes first in the file into a `ConfigError`."""
    located = [(_locate(fault, lines), fault) for fault in faults.errors()]
    # A key that is missing because it is misspelt: the misspelling is the better news.
    found = sorted(located, key=lambda pair: (lines[pair[0][1]], pair[1]["type"] == "missing"))
    key, nearest = found[0][0]
    where = f"{path}, line {lines[nearest]}" + (f", key {_dotted(key)}" if key else "")
    explained = [_explain(schema, key, other) for (spot, _), other in found if spot == key]
    _, was, fix = explained[0]
    expected = " or ".join(text for text, _, _ in explained)  # a union has one fault a branch
    others = {lines[spot] for (_, spot), _ in found[1:]} - {lines[nearest]}
    if others:
        fix += f" There are faults on line {', '.join(map(str, sorted(others)))} too."
    return _fault(where, expected, was, fix)


def _locate(fault: Any, lines: dict[Location, int]) -> tuple[Location, Location]:
    """Return the key that a fault is about, and the nearest key around it that stands in the file."""
    key: Location = tuple(fault["loc"])
    if fault["type"] == "broken_rule":
        key = (*key, fault["ctx"]["key"])
    while key and key not in lines and key[:-1] not in lines:
        key = key[:-1]  # pydantic names the branch of a union after the key
    if key not in lines and fault["type"] not in ("missing", "broken_rule"):
        key = key[:-1]
    return key, key if key in lines else key[:-1]


def _explain(schema: type[BaseModel], key: Location, fault: Any) -> tuple[str, str, str]:
    """Return what was expected, what was found, and what to do."""
    kind, context = fault["type"], fault.get("ctx", {})
    if kind == "extra_forbidden":
        known = list(_model_at(schema, key[:-1]).model_fields)
        near = difflib.get_close_matches(str(key[-1]), known, n=1, cutoff=0.6)
        fix = f"Did you mean {near[0]!r}?" if near else "Remove it."
        return f"one of {', '.join(known)}", f"an unknown key {str(key[-1])!r}", fix
    if kind == "missing":
        return f"the key {str(key[-1])!r}", "none", "Add it."
    if kind == "broken_rule":
        return context["expected"], context["found"], context["fix"]
    if kind == "literal_error":
        options = re.findall(r"'([^']*)'", context["expected"])
        near = difflib.get_close_matches(str(fault["input"]), options, n=1, cutoff=0.5)
        fix = f"Did you mean {near[0]!r}?" if near else "Choose one."
        return f"one of {', '.join(options)}", repr(fault["input"]), fix
    expected = _EXPECTED.get(kind, fault["msg"].removeprefix("Input should be ").removeprefix("a valid "))
    return expected, _shown(fault["input"]), "Change the value."


def _model_at(schema: type[BaseModel], key: Location) -> type[BaseModel]:
    """Follow a key through nested models to the model that holds it."""
    for part in key:
        if isinstance(part, str):
            schema = _inner_model(schema.model_fields[part].annotation) or schema
    return schema


def _inner_model(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Union, UnionType, list):
        return next((m for part in get_args(annotation) if (m := _inner_model(part)) is not None), None)
    return None


def _dotted(key: Location) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in key).removeprefix(".")


def _shown(value: object) -> str:
    names = {dict: "a mapping", list: "a list", type(None): "nothing"}
    return names.get(type(value), f"{value!r}")


def _fault(where: str, expected: str, found: str, fix: str) -> ConfigError:
    return ConfigError(where, expected=expected, found=found, fix=fix)
