"""What the circuit study measures: rewards, divergences, and the circuits of every domain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlforget import domains
from rlforget.circuits import Circuit, Task, find
from rlforget.circuits.comparison import Comparison, compare_circuits, over_bases
from rlforget.experiments.measure import Rewards, rewards
from rlforget.interference.divergence import kl_divergence

NAMES = tuple(domains.BUILT_IN)
MEASURES = ("retention", "iou", "correlation", "mask_shift")
_SIZE = 0.5  # of all heads, as in 2605.28860, whose base circuit has 297 of 576
_BATCH = 128


def evaluated(model: Any, tokenizer: Any, prompts: int) -> Rewards:
    """Mean sampled reward in every domain."""
    return rewards(model, tokenizer, count=prompts, names=NAMES)


def divergences(start: Any, model: Any, tokenizer: Any, completions: int, seed: int) -> dict[str, float]:
    """KL(start ‖ model) in every domain, nats a completion."""
    return {
        name: kl_divergence(start, model, domains.get(name), samples=completions, seed=seed, tokenizer=tokenizer).mean
        for name in NAMES
    }


def find_circuits(model: Any, tokenizer: Any, pairs: int, folder: Path) -> None:
    """Find the circuit of every domain by exact patching, unless it is in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        kept = folder / f"{name}.json"
        if not kept.exists():
            task = Task.from_domain(name, count=pairs)
            find(model, task, "patching", tokenizer=tokenizer, size=_SIZE, batch_size=_BATCH).save(kept)


def compared(start: Path, runs: dict[str, list[Path]]) -> dict[str, Comparison]:
    """Compare the circuits of a start with those of the runs of each method, domain by domain."""
    return {
        name: compare_circuits(
            Circuit.load(start / f"{name}.json"),
            {method: [Circuit.load(run / f"{name}.json") for run in folders] for method, folders in runs.items()},
        )
        for name in NAMES
    }


def summary(comparisons: list[dict[str, Comparison]], first: str, second: str) -> dict[str, Any]:
    """Summarise one learning rate over bases.

    Returns:
        For each domain and method: every measure's values (a list of runs, base by base) with bootstrap interval over
        prompts, chance, null band, ceiling and value on halves, means over runs; `p`: against the first method keeping
        no less, whole runs exchanged within each base; and `vulnerable`: for each δ, how many heads the first broke and
        the second kept, and the reverse, a base.
    """
    found: dict[str, Any] = {}
    for name in NAMES:
        of_bases = [comparison[name] for comparison in comparisons]
        p = over_bases(of_bases, first, second)
        found[name] = {
            "methods": {method: _measures(of_bases, method) for method in (first, second)},
            "p": {measure: p[measure].value for measure in MEASURES},
            "vulnerable": [_vulnerable(one, first, second) for one in of_bases],
        }
    return found


def _measures(of_bases: list[Comparison], method: str) -> dict[str, Any]:
    found = {}
    for measure in MEASURES:
        runs = [run[measure] for one in of_bases for run in one.runs(method)]
        ceilings = [run.ceiling.mean for run in runs if run.ceiling is not None]
        halves = [run.at_halves.mean for run in runs if run.at_halves is not None]
        intervals = [run.interval for run in runs if run.interval is not None]
        found[measure] = {
            "values": [run.value for run in runs],
            "interval": [_mean([one.low for one in intervals]), _mean([one.high for one in intervals])],
            "chance": _mean([run.chance for run in runs]),
            "null": [_mean([run.null.low for run in runs]), _mean([run.null.high for run in runs])],
            "ceiling": _mean(ceilings),
            "at_halves": _mean(halves),
        }
    return found


def _vulnerable(one: Comparison, first: str, second: str) -> list[dict[str, Any]]:
    return [
        {"delta": each.delta, "count": each.count, "reverse": each.reverse, "p": each.p.value}
        for each in one.difference(first, second).vulnerable
    ]


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
