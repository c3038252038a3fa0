"""The circuits of a run, read and checked: `circuits.json`, which `rlforget circuits compare` writes."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlforget.errors import ReportError
from rlforget.report.json_node import Node

CIRCUITS_FILE = "circuits.json"
FORMAT = "rlforget-circuits"
VERSION = 1
COMMAND = "rlforget circuits compare BASE NAME=MODEL --domain NAME"


@dataclass(frozen=True)
class Band:
    """Where the draws of a control lie: their mean, and the ends of the middle 95%."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class HeadMap:
    """A model's heads: the effect of each on the metric, and whether it is in the circuit; both [layers][heads]."""

    name: str
    scores: list[list[float]]
    mask: list[list[bool]]

    @property
    def heads(self) -> set[tuple[int, int]]:
        """The heads of the circuit, as (layer, head)."""
        return {(i, j) for i, row in enumerate(self.mask) for j, inside in enumerate(row) if inside}


@dataclass(frozen=True)
class AtSize:
    """Retention with both circuits cut to one size.

    Attributes:
        size: Heads in each.
        retention: Share of the base's heads that are in the fine-tune's.
        chance: What a random circuit would keep.
        ceiling: What the base keeps of itself from one half of the prompts to the other.
        at_halves: The same of the base on one half and the fine-tune on the other: what to read beside `ceiling`.
    """

    size: int
    retention: float
    chance: Band
    ceiling: float
    at_halves: float


@dataclass(frozen=True)
class Kept:
    """What a fine-tune kept of the base's circuit.

    Attributes:
        name: The fine-tune.
        retention: Share of the base's heads that are in its circuit.
        interval: Bootstrap over prompts.
        chance: What a random circuit of its size would keep.
        ceiling: See `AtSize`; at the base's size.
        at_halves: See `AtSize`; at the base's size.
        p_chance: How often chance keeps as much.
        p_prompts: How often the base keeps as little of itself on other prompts.
        correlation: Of the heads' effects with the base's.
        sizes: Over sizes of both circuits.
    """

    name: str
    retention: float
    interval: Band | None
    chance: Band
    ceiling: float
    at_halves: float
    p_chance: float
    p_prompts: float
    correlation: float
    sizes: list[AtSize]


@dataclass(frozen=True)
class Step:
    """A checkpoint on the way of a fine-tune: its reward on the task, and its retention."""

    name: str
    reward: float
    retention: float


@dataclass(frozen=True)
class Way:
    """The checkpoints of a fine-tune, in order, the base first."""

    name: str
    steps: list[Step]


@dataclass(frozen=True)
class Vulnerable:
    """The heads that one fine-tune lost by more than δ beyond the other.

    Attributes:
        delta: δ, in the units of a mask.
        heads: The heads, as (layer, head).
        reverse: How many heads it is the other way round for.
        in_base: How many of the heads are in the base's circuit.
        p: Against either way being as likely.
    """

    delta: float
    heads: list[tuple[int, int]]
    reverse: int
    in_base: int
    p: float


@dataclass(frozen=True)
class Difference:
    """Two fine-tunes, the one suspected of keeping less first, and the heads that only it lost, by rising δ."""

    first: str
    second: str
    vulnerable: list[Vulnerable]


@dataclass(frozen=True)
class HeadWeights:
    """What a fine-tune did to the weights of one head: how much of them changed, by part and in all, and how far.

    Attributes:
        head: `layer:head`, or what else it is.
        parts: Share of the coordinates that changed, by part: q, k, v, o.
        share: That of all parts.
        norm: Euclidean norm of the change; NaN where it is not told.
    """

    head: str
    parts: dict[str, float]
    share: float
    norm: float


@dataclass(frozen=True)
class Circuits:
    """All of `circuits.json` that a report shows; the base's map comes first, `prompts` may be unknown."""

    task: str
    prompts: int | None
    method: str
    metric: str
    maps: list[HeadMap]
    kept: list[Kept]
    ways: list[Way]
    differences: list[Difference]
    weights: dict[str, list[HeadWeights]]

    @property
    def base(self) -> HeadMap:
        """The base's heads."""
        return self.maps[0]


def read_circuits(run: Path) -> Circuits | None:
    """Read and check the circuits of a run; None where it has none.

    Args:
        run: The run's folder, or the file itself.

    Raises:
        ReportError: They are damaged, of another format or of another version.
    """
    path = run if run.is_file() else run / CIRCUITS_FILE
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise ReportError(
            str(path), expected="a readable JSON file", found=str(error), fix=f"Write it again: {COMMAND} -o {path}"
        ) from error
    return parse_circuits(raw, str(path))


def parse_circuits(raw: Any, where: str = "circuits") -> Circuits:
    """Check circuits as `json.loads` gives them.

    Args:
        raw: The circuits.
        where: What to call them in an error.

    Raises:
        ReportError: They are damaged, of another format or of another version.
    """
    root = Node(raw, f"{where}: ")
    _check_format(root, where)
    compared = root["comparison"]
    maps = [_map("base", compared["base"])]
    for name, runs in compared["tuned"].items():
        circuits = runs.elements()
        for position, node in enumerate(circuits):
            maps.append(_map(name if len(circuits) == 1 else f"{name}/{position}", node))
            if _shape(maps[-1]) != _shape(maps[0]):
                expected = f"as many layers and heads as the base, {_shape(maps[0])}"
                raise node["scores"].fault(expected, str(_shape(maps[-1])))
    names = [one.name for one in maps]
    if len(set(names)) < len(names):
        raise compared["tuned"].fault("a name of its own for every model", ", ".join(names))
    return Circuits(
        task=root["task"].text(),
        prompts=told.count() if (told := _deep(compared, "settings", "prompts")) else None,
        method=compared["base"]["method"].text(),
        metric=compared["base"]["metric"]["name"].text(),
        maps=maps,
        kept=[_kept(name, node) for name, node in compared["kept"].items()],
        ways=[_way(name, node) for name, node in _items(root, "trajectories")],
        differences=[_difference(node) for node in _elements(compared, "differences")],
        weights={name: _weights(node) for name, node in _items(root, "weights")},
    )


def _check_format(root: Node, where: str) -> None:
    form, version = (node.value if (node := root.get(key)) else None for key in ("format", "version"))
    if form != FORMAT or version is True or version != VERSION:
        raise ReportError(
            where,
            expected=f"circuits of the format {FORMAT}, version {VERSION}",
            found=f"format {form!r:.40}, version {version!r:.40}",
            fix=f"Write them again with this version of rlforget: {COMMAND}",
        )


def _map(name: str, node: Node) -> HeadMap:
    scores = [[cell.number() for cell in row.elements()] for row in node["scores"].elements()]
    mask = [[_flag(cell) for cell in row.elements()] for row in node["mask"].elements()]
    widths = {len(row) for row in scores}
    if len(widths) != 1 or 0 in widths:
        raise node["scores"].fault("a table of heads, as many in every layer", f"rows of {sorted(widths)}")
    if [len(row) for row in mask] != [len(row) for row in scores]:
        raise node["mask"].fault("a flag for every score", f"rows of {[len(row) for row in mask]}")
    return HeadMap(name, scores, mask)


def _shape(one: HeadMap) -> tuple[int, int]:
    return len(one.scores), len(one.scores[0])


def _flag(node: Node) -> bool:
    if not isinstance(node.value, bool):
        raise node.fault("true or false")
    return node.value


def _kept(name: str, node: Node) -> Kept:
    measures = node["measures"]
    measure = measures["retention"]
    chance, null = _number(measure, "chance"), measure["null"]
    interval = measure.get("interval")
    return Kept(
        name=name,
        retention=_number(measure, "value"),
        interval=_band(interval) if interval else None,
        chance=Band(chance, _number(null, "low"), _number(null, "high")),
        ceiling=_within(measure, "ceiling", "mean"),
        at_halves=_within(measure, "at_halves", "mean"),
        p_chance=_within(measure, "p_chance", "value"),
        p_prompts=_within(measure, "p_prompts", "value"),
        correlation=_within(measures, "correlation", "value"),
        sizes=[_at_size(one) for one in _elements(node, "sizes")],
    )


def _at_size(node: Node) -> AtSize:
    return AtSize(
        size=node["size"].count(),
        retention=_number(node, "retention"),
        chance=Band(*(_number(node, key) for key in ("chance", "chance_low", "chance_high"))),
        ceiling=_number(node, "ceiling"),
        at_halves=_number(node, "at_halves"),
    )


def _band(node: Node) -> Band:
    return Band(_number(node, "mean"), _number(node, "low"), _number(node, "high"))


def _way(name: str, node: Node) -> Way:
    return Way(name, [_step(one) for one in node["checkpoints"].elements()])


def _step(node: Node) -> Step:
    retention = _within(node["kept"]["measures"], "retention", "value")
    return Step(node["name"].text(), _number(node, "reward"), retention)


def _difference(node: Node) -> Difference:
    found = [
        Vulnerable(
            delta=one["delta"].number(),
            heads=[_head(head) for head in one["heads"].elements()],
            reverse=one["reverse"].count(),
            in_base=one["in_base"].count(),
            p=_within(one, "p", "value"),
        )
        for one in _elements(node, "vulnerable")
    ]
    return Difference(node["first"].text(), node["second"].text(), sorted(found, key=lambda one: one.delta))


def _head(node: Node) -> tuple[int, int]:
    pair = node.elements()
    if len(pair) != 2:
        raise node.fault("a pair of layer and head")
    return pair[0].count(), pair[1].count()


def _weights(node: Node) -> list[HeadWeights]:
    heads = [
        HeadWeights(
            ":".join(map(str, _head(one["head"]))),
            {part: _number(change, "share") for part, change in one["parts"].items()},
            _within(one, "total", "share"),
            _norm([one["total"]]),
        )
        for one in node["heads"].elements()
    ]
    others = [part for _, part in _items(node, "others")]
    numel, changed = (sum(_number(part, key) for part in others) for key in ("coordinates", "changed"))
    shares = {name: _number(part, "share") for name, part in _items(node, "others")}
    return [*heads, HeadWeights("all others", shares, changed / numel if numel else math.nan, _norm(others))]


def _norm(parts: list[Node]) -> float:
    return math.sqrt(sum(_number(part, "norm") ** 2 for part in parts))


def _elements(node: Node, key: str) -> list[Node]:
    found = node.get(key)
    return found.elements() if found else []


def _items(node: Node, key: str) -> list[tuple[str, Node]]:
    found = node.get(key)
    return found.items() if found else []


def _number(node: Node, key: str) -> float:
    """A number that the writer may not have been able to tell: NaN where it is missing."""
    found = node.get(key)
    return found.number() if found else math.nan


def _within(node: Node, key: str, inner: str) -> float:
    """A number in an object that the writer may not have: NaN where either is missing."""
    found = _deep(node, key, inner)
    return found.number() if found else math.nan


def _deep(node: Node, key: str, inner: str) -> Node | None:
    """A value in an object that the writer may not have."""
    found = node.get(key)
    return found.get(inner) if found else None
