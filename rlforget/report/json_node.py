"""A JSON value that knows where in its file it stands, so that a fault in it can be named."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from rlforget.errors import ReportError


@dataclass(frozen=True)
class Node:
    """A value of a JSON file.

    Attributes:
        value: The value, as `json.loads` gives it.
        where: The file and the way to the value in it, e.g. `runs/demo/results.json: runs[0].seed`.
    """

    value: Any
    where: str

    def __getitem__(self, key: str) -> Node:
        """Return the value under a key that must be there."""
        found = self.get(key)
        if found is None:
            raise self.fault(f"an object with the key {key!r}", ", ".join(self._object()) or "an empty one")
        return found

    def get(self, key: str) -> Node | None:
        """Return the value under a key; None where it is missing or null."""
        value = self._object().get(key)
        return None if value is None else Node(value, self._under(key))

    def items(self) -> list[tuple[str, Node]]:
        """Return the keys and values of an object, in their order."""
        return [(key, Node(value, self._under(key))) for key, value in self._object().items()]

    def elements(self) -> list[Node]:
        """Return the elements of an array."""
        if not isinstance(self.value, list):
            raise self.fault("an array")
        return [Node(value, f"{self.where}[{position}]") for position, value in enumerate(self.value)]

    def number(self) -> float:
        """Return a number; NaN where it is null or not finite: the writer could not tell it."""
        if self.value is None:
            return math.nan
        if isinstance(self.value, bool) or not isinstance(self.value, int | float):
            raise self.fault("a number")
        try:
            number = float(self.value)
        except OverflowError:
            return math.nan
        return number if math.isfinite(number) else math.nan

    def count(self) -> int:
        """Return an integer of at least 0."""
        if isinstance(self.value, bool) or not isinstance(self.value, int) or not 0 <= self.value < 2**63:
            raise self.fault("an integer of at least 0")
        return self.value

    def text(self) -> str:
        """Return a string."""
        if not isinstance(self.value, str):
            raise self.fault("a string")
        return self.value

    def numbers(self) -> dict[str, float]:
        """Return an object of numbers."""
        return {key: node.number() for key, node in self.items()}

    def fault(self, expected: str, found: str | None = None) -> ReportError:
        """Build the error that says what should have stood here; what does is shown unless `found` tells it."""
        shown = repr(self.value) if found is None else found
        return ReportError(
            self.where.removesuffix(": "),
            expected=expected,
            found=shown if len(shown) <= 60 else f"{shown[:57]}...",
            fix="The file was changed or damaged; make the run again.",
        )

    def _object(self) -> dict[str, Any]:
        if not isinstance(self.value, dict):
            raise self.fault("an object")
        return self.value

    def _under(self, key: str) -> str:
        return f"{self.where}{key}" if self.where.endswith(": ") else f"{self.where}.{key}"
