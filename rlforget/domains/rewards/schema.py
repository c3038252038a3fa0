"""A completion that has to be JSON of a given form."""

from __future__ import annotations

import json
from typing import Any

from rlforget.domains.base import Example
from rlforget.domains.rewards.fenced import fenced
from rlforget.errors import missing_extra


def json_schema(example: Example, completion: str) -> float:
    """1 where the completion is JSON that the example's JSON Schema allows, else 0.

    The JSON is the last fenced block, or the whole completion. NaN and Infinity, which are no JSON, are worth 0, and so
    are keys that stand twice in an object. The schema is the reference alone: an answer is no schema.

    Raises:
        ValueError: The reference is no JSON Schema.
        MissingExtraError: The package jsonschema is not installed.
    """
    try:
        import jsonschema
    except ImportError as fault:
        raise missing_extra("jsonschema", "train") from fault
    try:
        schema = json.loads(example.reference)
        kind = jsonschema.validators.validator_for(schema)
        kind.check_schema(schema)
    except (json.JSONDecodeError, jsonschema.SchemaError) as fault:
        raise ValueError(f"the reference {example.reference!r} is no JSON Schema: {fault}") from fault
    try:
        value = json.loads(fenced(completion), parse_constant=_refuse, object_pairs_hook=_once)
    except (ValueError, RecursionError):
        return 0.0
    try:
        return float(kind(schema).is_valid(value))
    except (RecursionError, OverflowError):  # of 1e400 and multipleOf, say
        return 0.0


def _refuse(name: str) -> Any:
    raise ValueError(name)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key twice")
    return found
