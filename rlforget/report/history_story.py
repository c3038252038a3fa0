"""What a history says: its stages as nodes of a graph, whose bits each layer has, and the findings in sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlforget.report.wording import listing, moved, percent, plural

if TYPE_CHECKING:
    from rlforget.history.blame import BlameSummary
    from rlforget.history.index import Index
    from rlforget.history.stage import Stage

BASE = "base"
_ERROR = "_stderr"  # at the end of what a metric's standard error is called
_NEAR = 0.5  # beyond 0 and 1 a share may lie, e.g. of a loss regained


@dataclass(frozen=True)
class Node:
    """A stage, or the base.

    Attributes:
        key: Its id; `base` for the base.
        parent: The key of the one it came from; None for the base.
        name: Its name.
        tags: What else stands for it.
        head: Whether it was committed last.
        lane: The branch it lies on, from 0.
        message: The first line of what was said of it.
        identity: The first digits of its id, its domain and its time.
        share: Of the coordinates that it changed; NaN where that is not told.
        metrics: The numbers among its metrics.
        errors: The standard errors of some of them.
    """

    key: str
    parent: str | None
    name: str
    tags: tuple[str, ...]
    head: bool
    lane: int
    message: str
    identity: str
    share: float
    metrics: Mapping[str, float]
    errors: Mapping[str, float]

    @property
    def shown(self) -> str:
        """The name, with HEAD and the tags."""
        also = ["HEAD"] * self.head + list(self.tags)
        return f"{self.name} ({', '.join(also)})" if also else self.name


@dataclass(frozen=True)
class Told:
    """A history's stages.

    Attributes:
        nodes: The base, and the stages in the order of their commits.
        line: The base, and the stages on the way to HEAD.
    """

    nodes: list[Node]
    line: list[Node]

    @property
    def graph_finding(self) -> str:
        """Say how many stages and branches there are, and which stage is HEAD."""
        branches = plural(1 + max(node.lane for node in self.nodes), "branch").replace("branchs", "branches")
        head = next((node.name for node in self.nodes if node.head), BASE)
        return f"{plural(len(self.nodes) - 1, 'stage')} on {branches}; HEAD is {head}"

    @property
    def drawn(self) -> list[str]:
        """The metrics that fit on one scale: those that are shares or rewards throughout; all, where none is."""
        names = dict.fromkeys(name for node in self.line for name in node.metrics)
        values = {name: [node.metrics[name] for node in self.line if name in node.metrics] for name in names}
        shares = [name for name, known in values.items() if all(-_NEAR <= one <= 1 + _NEAR for one in known)]
        return shares or list(names)

    @property
    def metrics_finding(self) -> str:
        """Say how each metric that is drawn went from the first stage that has it to the last one."""
        said = []
        for name in self.drawn:
            values = [node.metrics[name] for node in self.line if name in node.metrics]
            said.append(f"{name} {moved(values[0], values[-1])}" if len(values) > 1 else f"{name} was measured once")
        return listing(said[:4]) + (f", and {len(said) - 4} more" if len(said) > 4 else "")

    @property
    def story(self) -> list[str]:
        """The findings that need no weights, as sentences."""
        sentences = [f"The history holds {self.graph_finding}."]
        changed = [f"{node.name} {percent(node.share, 1)}" for node in self.line if not math.isnan(node.share)]
        if changed:
            sentences.append(
                f"On the way to HEAD, the share of the coordinates that each stage changed: {listing(changed)}."
            )
        if any(node.metrics for node in self.line):
            sentences.append(f"Of what was measured, {self.metrics_finding}.")
        return sentences


@dataclass(frozen=True)
class Blamed:
    """Whose bits the weights at HEAD are.

    Attributes:
        stages: The base's name, and those of the stages on the way to HEAD.
        layers: For each layer, None outside of all, the share of its coordinates that each of them changed last.
        whole: The same of all coordinates.
        changes: Changes of coordinates by all stages.
        returns: Those that brought back bits from before.
    """

    stages: list[str]
    layers: dict[int | None, list[float]]
    whole: list[float]
    changes: int
    returns: int

    @property
    def finding(self) -> str:
        """Say who changed most of the coordinates last, and how many are as in the base."""
        place = max(range(len(self.whole)), key=lambda position: self.whole[position])
        untouched = f"{percent(self.whole[0], 1)} of the coordinates still have the base's bits"
        if place == 0:
            return untouched
        return f"{self.stages[place]} last changed {percent(self.whole[place], 1)} of the coordinates; {untouched}"

    @property
    def story(self) -> list[str]:
        """The finding as sentences."""
        back = f"Of {self.changes:,} changes of a coordinate, {self.returns:,} brought back bits that it had before."
        return [f"At HEAD, {self.finding}.", back]


def told_of(index: Index) -> Told:
    """Lay out the stages: a stage goes on with its parent's branch, unless another stage did before it."""
    from rlforget.history.stage import lineage

    ends, count = {BASE: 0}, 1  # the branch that each stage without a child lies on
    first = Node(BASE, None, BASE, (), not index.stages, 0, index.base.path, "", math.nan, {}, {})
    nodes = {BASE: first}
    for stage in index.stages:
        parent = stage.parent or BASE
        lane = ends.pop(parent, None)
        if lane is None:
            lane, count = count, count + 1
        ends[stage.id] = lane
        nodes[stage.id] = _node(stage, parent, lane, index)
    way = reversed(list(lineage(index.by_id, index.head)))
    return Told(list(nodes.values()), [first, *(nodes[stage.id] for stage in way)])


def _node(stage: Stage, parent: str, lane: int, index: Index) -> Node:
    identity = [stage.short, *([stage.domain] if stage.domain else []), stage.time]
    tags, head = tuple(index.tags_of(stage)), stage == index.head
    known = numbers(stage.metrics)
    errors = {name.removesuffix(_ERROR): value for name, value in known.items() if name.endswith(_ERROR)}
    return Node(
        stage.id,
        parent,
        stage.name,
        tags,
        head,
        lane,
        stage.title,
        ", ".join(identity),
        _share(stage.stats),
        {name: value for name, value in known.items() if not name.endswith(_ERROR)},
        errors,
    )


def _share(stats: Mapping[str, object]) -> float:
    """The share of coordinates changed, by statistics that anyone may have written."""
    changed, numel = stats.get("changed"), stats.get("numel")
    known = type(changed) is int and type(numel) is int and 0 <= changed <= numel and numel
    return changed / numel if known else math.nan  # type: ignore[operator]


def numbers(metrics: Mapping[str, object], before: str = "") -> dict[str, float]:
    """Return the finite numbers among metrics, those of objects inside by both names.

    A score, which is a mean with its standard error, is one number, and the error stands under NAME_stderr. The scores
    that a run keeps are called by their domains.
    """
    found: dict[str, float] = {}
    for name, value in metrics.items():
        if isinstance(value, Mapping) and {"mean", "stderr"} <= value.keys():
            found |= numbers({name: value["mean"], f"{name}{_ERROR}": value["stderr"]}, before)
        elif isinstance(value, Mapping):
            found |= numbers(value, before if name == "scores" and not before else f"{before}{name} ")
        elif isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300:
            found[f"{before}{name}"] = float(value)
    return found


def blamed_of(summary: BlameSummary) -> Blamed:
    """Turn the counts of a blame into shares."""
    total = summary.total

    def shares(last: Sequence[int], numel: int) -> list[float]:
        return [count / numel if numel else math.nan for count in last]

    return Blamed(
        stages=[BASE, *(stage.name for stage in summary.stages)],
        layers={layer: shares(count.last, count.numel) for layer, count in summary.layers.items()},
        whole=shares(total.last, total.numel),
        changes=total.changes,
        returns=total.returns,
    )
