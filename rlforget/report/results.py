"""A run's results, read and checked.

Every part of a run but its seed may be missing; what is there must have the right shape.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlforget.delta.naming import module_of
from rlforget.errors import ReportError
from rlforget.report.json_node import Node

RESULTS_FILE = "results.json"
FORMAT = "rlforget-demo"
VERSION = 1

Place = tuple[int | None, str]
"""A layer's number, None outside of all layers, and a module, e.g. `up_proj`."""


@dataclass(frozen=True)
class Change:
    """How much a group of tensors changed in a stage.

    Attributes:
        numel: All coordinates.
        changed: Those whose stored bits differ.
        squares: Sum of (after − before)².
    """

    numel: int
    changed: int
    squares: float

    def __add__(self, other: Change) -> Change:
        return Change(self.numel + other.numel, self.changed + other.changed, self.squares + other.squares)


@dataclass(frozen=True)
class TensorChange:
    """The change of one tensor: where it lies, what kind it is, and how much of it changed."""

    place: Place
    kind: str
    change: Change


@dataclass(frozen=True)
class StageDelta:
    """What a stage did to the weights.

    Attributes:
        dtypes: The storage dtypes.
        sparsity: The share of equal coordinates: by bits, and under the absolute and the relative tolerance.
        norm: Euclidean norm of the change.
        steps: Changed coordinates by the number of representable values they moved: bin 0 none, then bin b from
            2**(b-1) up to 2**b - 1; empty where the run does not tell.
        tensors: The change of each tensor, in the model's order.
    """

    dtypes: tuple[str, ...]
    sparsity: dict[str, float]
    norm: float
    steps: tuple[int, ...]
    tensors: dict[str, TensorChange]

    @property
    def places(self) -> dict[Place, Change]:
        """The change by layer and module."""
        found: defaultdict[Place, Change] = defaultdict(lambda: Change(0, 0, 0.0))
        for tensor in self.tensors.values():
            found[tensor.place] += tensor.change
        return dict(found)

    @property
    def kinds(self) -> dict[str, Change]:
        """The change by kind of tensor."""
        found: defaultdict[str, Change] = defaultdict(lambda: Change(0, 0, 0.0))
        for tensor in self.tensors.values():
            found[tensor.kind] += tensor.change
        return dict(found)


@dataclass(frozen=True)
class Stage:
    """A stage.

    Attributes:
        name: Its name.
        rewards: Every domain's mean sampled reward after it.
        stderr: Their standard errors over prompts, where the run tells.
        delta: What it did to the weights; the base did nothing.
        weights: The fingerprint of the weights after it; empty where the run does not tell.
        config: How it was trained, in words; empty likewise.
        domain: What it trained: its name, unless the run tells.
    """

    name: str
    rewards: dict[str, float]
    stderr: dict[str, float]
    delta: StageDelta | None
    weights: str
    config: str
    domain: str


@dataclass(frozen=True)
class Shared:
    """Jaccard index of two stages' sets, and what chance alone would give."""

    jaccard: float
    chance: float


@dataclass(frozen=True)
class Pair:
    """The overlap of two stages: of their changed coordinates, and of their most edited neurons."""

    first: str
    second: str
    coordinates: Shared
    neurons: Shared


@dataclass(frozen=True)
class Repair:
    """What one repair did.

    Attributes:
        rule: A conflict score, or another rule's name.
        fraction: Share of the model's coordinates that were put back; None where there was no choice of coordinates.
        rewards: Mean sampled reward of each domain afterwards.
        regained: Share of the earlier domains' lost reward that came back.
        kept: Share of the later domains' gain that stayed.
        norm_share: Norm of the correction over the norm of the later change.
        regained_stderr: Standard error of `regained` over prompts, NaN where the run does not tell.
        kept_stderr: That of `kept`.
    """

    rule: str
    fraction: float | None
    rewards: dict[str, float]
    regained: float
    kept: float
    norm_share: float
    regained_stderr: float
    kept_stderr: float


@dataclass(frozen=True)
class Tuned:
    """A fine-tune on the target domain: what it reached, forgot and left unchanged, and how far it went."""

    steps: int
    rewards: dict[str, float]
    forgotten: float
    sparsity: dict[str, float]
    kl_to_start: dict[str, float]


@dataclass(frozen=True)
class Comparison:
    """SFT and RL on one domain, from one start, to one reward."""

    target: str
    start: dict[str, float]
    grpo: Tuned
    sft: Tuned


@dataclass(frozen=True)
class Run:
    """The main job on one seed. `lost` names the earlier domains; `base_weights` is the base's fingerprint, if told."""

    seed: int
    base_weights: str
    stages: list[Stage]
    overlaps: list[Pair]
    lost: dict[str, float]
    repairs: list[Repair]
    comparison: Comparison | None
    seconds: float | None


@dataclass(frozen=True)
class Results:
    """All of `results.json` that a report shows. `command` made it; empty: the demo did, with these seeds."""

    command: str
    fast: bool
    settings: dict[str, str]
    versions: dict[str, str]
    machine: str
    runs: list[Run]


def read_results(run: Path) -> Results:
    """Read and check the results of a run.

    Args:
        run: The run's folder.

    Raises:
        ReportError: There are none, or they are damaged, of another format or of another version.
    """
    from rlforget.report.sequence_run import is_sequence, read_sequence

    path = run / RESULTS_FILE
    if not path.exists() and is_sequence(run):
        return read_sequence(run)
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        fix = "Give what `rlforget demo`, `rlforget sequence` or `rlforget circuits compare` wrote, or a history."
        found = "a folder without it" if run.is_dir() else "no such folder"
        raise ReportError(str(run), expected=f"a run's folder, with {RESULTS_FILE}", found=found, fix=fix) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ReportError(
            str(path),
            expected="a readable JSON file",
            found=str(error),
            fix="Make the run again with `rlforget demo --force`.",
        ) from error
    return parse_results(raw, str(path))


def parse_results(raw: Any, where: str = "results") -> Results:
    """Check results as `json.loads` or `run_demo` gives them.

    Args:
        raw: The results.
        where: What to call them in an error.

    Raises:
        ReportError: They are damaged, of another format or of another version.
    """
    root = Node(raw, f"{where}: ")
    _check_format(root, where)
    runs = [_run(node) for node in root["runs"].elements()]
    if not runs or any(_outline(run) != _outline(runs[0]) for run in runs):
        outlines = "; ".join(" → ".join(_outline(run)) for run in runs)
        raise root["runs"].fault("at least one run, and the same stages in all of them", outlines or "no run")
    fast, machine = root.get("fast"), root.get("machine")
    return Results(
        command=command.text() if (command := root.get("command")) else "",
        fast=bool(fast and fast.value is True),
        settings=_texts(root.get("settings")),
        versions=_texts(root.get("versions")),
        machine=machine.text() if machine else "",
        runs=runs,
    )


def _check_format(root: Node, where: str) -> None:
    form, version = (node.value if (node := root.get(key)) else None for key in ("format", "version"))
    if form != FORMAT or version is True or version != VERSION:
        raise ReportError(
            where,
            expected=f"results of the format {FORMAT}, version {VERSION}",
            found=f"format {form!r:.40}, version {version!r:.40}",
            fix="Make the run again with this version of rlforget.",
        )


def _outline(run: Run) -> list[str]:
    return [stage.name for stage in run.stages]


def _texts(node: Node | None) -> dict[str, str]:
    """An object of anything, each value as one would write it."""
    if node is None:
        return {}
    return {key: item.value if isinstance(item.value, str) else json.dumps(item.value) for key, item in node.items()}


def _run(node: Node) -> Run:
    lost, comparison, seconds = node.get("lost"), node.get("sft_and_rl"), node.get("seconds")
    return Run(
        seed=node["seed"].count(),
        base_weights=base.text() if (base := node.get("base_weights")) else "",
        stages=[_stage(stage) for stage in _elements(node, "stages")],
        overlaps=[_pair(pair) for pair in _elements(node, "overlaps")],
        lost=lost.numbers() if lost else {},
        repairs=[_repair(repair) for repair in _elements(node, "repairs")],
        comparison=_comparison(comparison) if comparison else None,
        seconds=seconds.number() if seconds else None,
    )


def _elements(node: Node, key: str) -> list[Node]:
    found = node.get(key)
    return found.elements() if found else []


def _stage(node: Node) -> Stage:
    delta, stderr, domain = node.get("delta"), node.get("stderr"), node.get("domain")
    name = node["name"].text()
    return Stage(
        name,
        node["rewards"].numbers(),
        stderr.numbers() if stderr else {},
        _delta(delta) if delta else None,
        weights.text() if (weights := node.get("weights")) else "",
        config.text() if (config := node.get("config")) else "",
        domain.text() if domain else name,
    )


def _delta(node: Node) -> StageDelta:
    total = node["total"]
    return StageDelta(
        dtypes=tuple(dtype.text() for dtype in total["dtypes"].elements()),
        sparsity={key: total[key].number() for key in ("sparsity", "sparsity_absolute", "sparsity_relative")},
        norm=total["l2"].number(),
        steps=tuple(step.count() for step in _elements(total, "steps")),
        tensors={name: _tensor(name, tensor) for name, tensor in node["tensors"].items()},
    )


def _tensor(name: str, node: Node) -> TensorChange:
    layer, norm = node.get("layer"), node["l2"].number()
    place = (layer.count() if layer else None, module_of(name))
    change = Change(node["numel"].count(), node["changed"].count(), norm * norm)
    return TensorChange(place, node["kind"].text(), change)


def _pair(node: Node) -> Pair:
    first, second = node["first"].text(), node["second"].text()
    return Pair(first, second, _shared(node["coordinates"]), _shared(node["neurons"]))


def _shared(node: Node) -> Shared:
    return Shared(node["jaccard"].number(), node["jaccard_by_chance"].number())


def _repair(node: Node) -> Repair:
    fraction = _number(node, "fraction")
    return Repair(
        rule=node["rule"].text(),
        fraction=fraction if math.isfinite(fraction) else None,
        rewards=node["rewards"].numbers(),
        regained=_number(node, "regained"),
        kept=_number(node, "kept"),
        norm_share=_number(node, "norm_share"),
        regained_stderr=_number(node, "regained_stderr"),
        kept_stderr=_number(node, "kept_stderr"),
    )


def _number(node: Node, key: str) -> float:
    """A number that the writer may not have been able to tell: NaN where it is missing."""
    found = node.get(key)
    return found.number() if found else float("nan")


def _comparison(node: Node) -> Comparison:
    start = node["start"]["rewards"].numbers()
    return Comparison(node["target"].text(), start, _tuned(node["grpo"]), _tuned(node["sft"]))


def _tuned(node: Node) -> Tuned:
    return Tuned(
        steps=node["steps"].count(),
        rewards=node["rewards"].numbers(),
        forgotten=_number(node, "forgotten"),
        sparsity=node["sparsity"].numbers(),
        kl_to_start=node["kl_to_start"].numbers(),
    )
