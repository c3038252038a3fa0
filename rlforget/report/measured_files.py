"""What `rlforget damage` and `rlforget conflict` measured on a run, read and checked: their JSON, in its folder."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlforget.delta.naming import layer_of, module_of
from rlforget.errors import ReportError
from rlforget.report.json_node import Node
from rlforget.report.results import Place

DAMAGE_FILE, CONFLICT_FILE = "damage.json", "conflict.json"
DAMAGE_COMMAND = "rlforget damage MODEL DELTA --domain NAME --by tensor --json"
CONFLICT_COMMAND = "rlforget conflict MODEL DELTA --restore NAME --parts subspace --json"


@dataclass(frozen=True)
class Measured:
    """A number and its standard error."""

    value: float
    stderr: float


@dataclass(frozen=True)
class Point:
    """A point on the way from before (t = 0) to now (t = 1): the rise of the loss and KL, in nats a completion."""

    t: float
    rise: Measured
    kl: float


@dataclass(frozen=True)
class TensorDamage:
    """The part of the predicted damage that lies in one tensor, beside what the others do; the parts add up.

    Attributes:
        name: The tensor.
        place: Where it lies.
        first: Of first order in the change, nats a completion.
        second: Of second order.
    """

    name: str
    place: Place
    first: float
    second: float

    @property
    def damage(self) -> float:
        """Both together."""
        return self.first + self.second


@dataclass(frozen=True)
class DomainDamage:
    """What a change did to an earlier domain.

    Attributes:
        domain: The domain.
        curvature: What stood for the second derivative.
        first: Of the predicted rise, the part that grows with t.
        second: The part that grows with t².
        total: The predicted rise at t = 1.
        bends: Whether the prediction is t·first + t²·second, and so known between the ends.
        count: Completions.
        seed: Seed of the run it was measured on; None where that is not told.
        points: What was measured.
        tensors: Where the predicted damage lies; empty unless it was asked for by tensor.
    """

    domain: str
    curvature: str
    first: float
    second: float
    total: Measured
    bends: bool
    count: int
    seed: int | None
    points: list[Point]
    tensors: list[TensorDamage]

    def at(self, t: float) -> float:
        """Return the predicted rise at t."""
        return t * self.first + t * t * self.second


@dataclass(frozen=True)
class CurvePoint:
    """A number of directions, the share of the damage that undoing them undoes, and what that costs."""

    directions: int
    explained: float
    side_effect: float
    norm_share: float


@dataclass(frozen=True)
class Subspace:
    """In how few directions the damage lies.

    Attributes:
        curves: The curves by their names.
        needed: Directions that carry nine tenths of the damage; None where none do.
        samples: Completions a domain; None where it is not told.
        seed: See `DomainDamage`.
    """

    curves: dict[str, list[CurvePoint]]
    needed: int | None
    samples: int | None
    seed: int | None


_CURVES = {
    "by_share": "those that carry most of it",
    "by_eigenvalue": "those of the largest eigenvalues",
    "random": "random ones",
}


def read_damage(run: Path) -> list[DomainDamage] | None:
    """Read the damage measured on a run; None where none was.

    Raises:
        ReportError: The file is damaged, or is not what the command printed.
    """
    root = _read(_place(run, DAMAGE_FILE), DAMAGE_COMMAND)
    if root is None:
        return None
    return [_domain(name, node, _count(root, "seed")) for name, node in root["domains"].items()]


def read_subspace(run: Path) -> Subspace | None:
    """Read the conflict subspace measured on a run; None where it was not.

    Raises:
        ReportError: The file is damaged, or is not what the command printed.
    """
    root = _read(_place(run, CONFLICT_FILE), CONFLICT_COMMAND)
    found = root.get("subspace") if root else None
    if root is None or found is None:
        return None
    return Subspace(
        curves={name: [_curve_point(node) for node in found[key].elements()] for key, name in _CURVES.items()},
        needed=_count(found["directions_for_90_percent"], "share"),
        samples=_count(root, "samples"),
        seed=_count(root, "seed"),
    )


def _place(run: Path, name: str) -> Path:
    """Where a file of a run is: in its folder, else in that of its first seed, where the demo writes it."""
    of_seeds = sorted(run.glob(f"seed-*/{name}"), key=lambda path: (len(path.parent.name), path.parent.name))
    return next((path for path in (run / name, *of_seeds) if path.exists()), run / name)


def _read(path: Path, command: str) -> Node | None:
    try:
        raw: Any = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        fix = f"Write it again: {command} > {path}"
        raise ReportError(str(path), expected="a readable JSON file", found=str(error), fix=fix) from error
    return Node(raw, f"{path}: ")


def _domain(name: str, node: Node, seed: int | None) -> DomainDamage:
    predicted, measured = node["predicted"], node["measured"]
    columns = [measured[key].elements() for key in ("t", "rise", "rise_stderr", "kl")]
    if len({len(column) for column in columns}) != 1:
        raise measured.fault("as many points in t, rise, rise_stderr and kl", str([len(one) for one in columns]))
    return DomainDamage(
        domain=name,
        curvature=predicted["curvature"].text(),
        first=predicted["first"].number(),
        second=predicted["second"].number(),
        total=Measured(predicted["total"].number(), _number(predicted, "total_stderr")),
        bends=len(predicted["points"].elements()) == 1,
        count=measured["count"].count(),
        seed=seed,
        points=[
            Point(t.number(), Measured(rise.number(), stderr.number()), _number(kl, "mean"))
            for t, rise, stderr, kl in zip(*columns, strict=True)
        ],
        tensors=_tensors(predicted),
    )


def _tensors(predicted: Node) -> list[TensorDamage]:
    by = predicted.get("by")
    if by is None or by.value != "tensor":
        return []
    return [
        TensorDamage(name, (layer_of(name), module_of(name)), part["first"].number(), part["row_sum"].number())
        for name, part in predicted["parts"].items()
    ]


def _curve_point(node: Node) -> CurvePoint:
    side, norm = _number(node, "side_effect"), _number(node, "norm_share")
    return CurvePoint(node["directions"].count(), node["explained"].number(), side, norm)


def _count(node: Node, key: str) -> int | None:
    """A count that may be missing."""
    found = node.get(key)
    return found.count() if found else None


def _number(node: Node, key: str) -> float:
    """A number that may be missing: NaN."""
    found = node.get(key)
    return found.number() if found else math.nan
