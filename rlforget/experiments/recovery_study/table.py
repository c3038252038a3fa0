"""The tidy table of a study: one row a measurement."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import Any

from rlforget.experiments.recovery_study.scene import Row
from rlforget.weights.atomic import new_file

COLUMNS: dict[str, str] = {
    "base": "the model that the stages started from",
    "size": "its size",
    "method": "grpo or sft",
    "seed": "of the stages, and of everything measured",
    "part": "pairs, sequence, deep, bases or sizes",
    "earlier": "domains to restore",
    "later": "domains to protect",
    "measure": "the group of measurements that the row belongs to",
    "rule": "what was done; `none` for what was lost",
    "chosen": "what a search chose",
    "budget": "share of the model's coordinates that were put back",
    "n": "completions a domain",
    "rows": "what a row of the conflict subspace is",
    "passes": "passes of the conflict subspace",
    "lam": "weight of the protected domains",
    "mu": "ridge, in units of the mean squared norm of the restoring rows",
    "strength": "share of the correction that was made, or of δ that was gone back",
    "steps": "steps of a refresh",
    "samples": "completions drawn in all",
    "dtype": "of the weights, where it is not float32",
    "counts": "whether enough was lost and gained for the shares to mean something",
    "then": "mean reward of the earlier domains at their stage",
    "now": "at the later stage",
    "after": "after the rule",
    "later_then": "the later domains' likewise",
    "later_now": "",
    "later_after": "",
    "regained": "share of the loss that came back",
    "kept": "share of the later domains' gain that stayed",
    "norm_share": "norm of what was moved over the norm of δ",
    "value": "a measured number that is no reward; the rule says which",
    "predicted": "what was predicted of it",
    "seconds": "that the rule took, without its evaluation",
    "measure_seconds": "that its whole group took",
    "rewards": "every domain's reward after the rule, as JSON",
}
"""The columns, and what they mean."""


def write_table(rows: list[Row], path: Path) -> None:
    """Write the rows as CSV.

    Raises:
        KeyError: A row has a field that is no column.
    """
    out = io.StringIO()
    writer = csv.DictWriter(out, list(COLUMNS), restval="", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _shown(value) for name, value in row.items()})
    with new_file(path, force=True) as file:
        file.write(out.getvalue().encode())


def read_table(path: Path) -> list[Row]:
    """Read a table; empty cells are None, numbers are numbers."""
    with path.open(encoding="utf-8", newline="") as file:
        return [{name: _value(cell) for name, cell in row.items()} for row in csv.DictReader(file)]


def _shown(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.6g}" if math.isfinite(value) else ""
    return "" if value is None else value


def _value(cell: str) -> Any:
    if cell in ("True", "False"):
        return cell == "True"
    for kind in (int, float):
        try:
            return kind(cell)
        except ValueError:
            continue
    return cell or None
