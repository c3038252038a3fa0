"""The circuits of a base and of models tuned from it, held against each other and against chance and a ceiling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any, TypeVar

from rlforget.circuits import exchange
from rlforget.circuits.circuit import Circuit, head_count
from rlforget.circuits.controls import PValue, bootstrap
from rlforget.circuits.difference import Difference, differ
from rlforget.circuits.effects import KEEPS, HeadEffects, check_same_heads
from rlforget.circuits.kept import Draws, Kept, keep
from rlforget.errors import ConfigError, UnknownNameError

if TYPE_CHECKING:
    from rlforget.circuits.task import Task

DELTAS = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9)
"""The values of δ that vulnerable heads are counted at."""

SIZES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Circuit sizes, as shares of all heads, at which retention is measured with both circuits cut alike."""

T = TypeVar("T")


class Finder:
    """Finds the circuits of one task in several models alike.

    Args:
        base: The model whose tokenizer encodes the prompts of all where none is given: a model in memory may have none,
            and other tokens would be another task.
        task: Pairs of prompts, or the name of a domain.
        method: How circuits are found, see `find`.
        tokenizer: Encodes the prompts.
        size: Heads in each circuit.
        seed: Seed of the search.
        options: Further options of `find`.
    """

    def __init__(
        self,
        base: Any,
        task: Task | str,
        method: str,
        *,
        tokenizer: Any,
        size: int | float | None,
        seed: int,
        options: Mapping[str, Any],
    ) -> None:
        from rlforget.circuits.task import Task
        from rlforget.interference.completions import tokenizer_of

        self.task = Task.from_domain(task) if isinstance(task, str) else task
        textual = any(isinstance(pair.clean, str) for pair in self.task.pairs)
        self.tokenizer = tokenizer_of(base, tokenizer) if textual else tokenizer
        self._method, self._options = method, {"size": size, "seed": seed, **options}

    def __call__(self, model: Any) -> Circuit:
        """Return the circuit of a model."""
        from rlforget.circuits.finding import find

        return find(model, self.task, self._method, tokenizer=self.tokenizer, **self._options)


@dataclass(frozen=True)
class Comparison:
    """What fine-tunes keep of their base's circuit.

    Attributes:
        base: The base's circuit.
        tuned: For each recipe, the circuits of its runs.
        kept: What each run keeps; the runs of a recipe of several are named `sft/0`, `sft/1`, ...
        differences: Every two recipes, in the order they were given: the first is the one suspected of keeping less.
        settings: Draws, seed and sizes of the comparison.
    """

    base: Circuit
    tuned: dict[str, list[Circuit]]
    kept: dict[str, Kept]
    differences: list[Difference]
    settings: dict[str, Any]

    def __getitem__(self, name: str) -> Kept:
        """Return what a run keeps.

        Raises:
            UnknownNameError: There is no such run.
        """
        if name not in self.kept:
            raise UnknownNameError(
                f"run {name!r}", expected=f"one of {', '.join(self.kept)}", found=repr(name), fix="Check the spelling."
            )
        return self.kept[name]

    def difference(self, first: str, second: str) -> Difference:
        """Return how two recipes differ.

        Raises:
            UnknownNameError: The two were not compared in this order.
        """
        for one in self.differences:
            if (one.first, one.second) == (first, second):
                return one
        raise UnknownNameError(
            f"difference of {first!r} and {second!r}",
            expected=f"one of {', '.join(f'{one.first}, {one.second}' for one in self.differences) or 'no pair'}",
            found="no such pair",
            fix="Name the two in the order in which they were compared.",
        )

    def runs(self, name: str) -> list[Kept]:
        """Return what each run of a recipe keeps, in order."""
        count = len(self.tuned.get(name, []))
        return [self[run] for run in _run_names(name, count)] if count else [self[name]]

    def table(self) -> str:
        """Return tables for people, at most 100 columns wide."""
        from rlforget.circuits.comparison_table import render

        return render(self)

    def to_dict(self) -> dict[str, Any]:
        """Return every figure as plain JSON values."""
        return {
            "base": _circuit(self.base),
            "tuned": {name: [_circuit(one) for one in runs] for name, runs in self.tuned.items()},
            "kept": {name: one.to_dict() for name, one in self.kept.items()},
            "differences": [one.to_dict() for one in self.differences],
            "settings": self.settings,
        }


def compare(
    base: Any,
    tuned: Mapping[str, Any],
    task: Task | str,
    *,
    replicates: Sequence[Any] = (),
    tokenizer: Any = None,
    method: str = "eap-ig",
    size: int | float | None = None,
    delta_sweep: Sequence[float] = DELTAS,
    sizes: Sequence[int | float] = SIZES,
    permutations: int = 1000,
    bootstrap: int = 1000,
    splits: int = 100,
    seed: int = 0,
    **find_options: Any,
) -> Comparison:
    """Find one task's circuit in a base and in models tuned from it, and compare the circuits.

    Args:
        base: The model that the others were tuned from.
        tuned: For each recipe, a model or several runs of it, e.g. `{"sft": model, "grpo": [run_0, run_1]}`. Name the
            one that is suspected of keeping less first.
        task: Pairs of prompts, or the name of a domain.
        replicates: Models that differ from the base by seed noise alone, e.g. of the same pretraining with other seeds.
        tokenizer: Encodes the prompts; by default the one in the base's folder.
        method: How circuits are found, see `find`.
        size: Heads in each circuit, or which share of all. By default each method's own choice.
        delta_sweep: The values of δ, in [0, 1), at which vulnerable heads are counted.
        sizes: Where retention is measured with both circuits cut to one size.
        permutations: Draws of each null.
        bootstrap: Draws of prompts.
        splits: Splits of the prompts into halves, for the ceiling.
        seed: Seed of the search and of all draws.
        find_options: Further options of `find`.

    Raises:
        ConfigError: No model to compare, an empty circuit, or a value out of range.
        LayoutError: Models of different shapes.
    """
    circuit = Finder(base, task, method, tokenizer=tokenizer, size=size, seed=seed, options=find_options)
    return compare_circuits(
        circuit(base),
        {name: [circuit(model) for model in _several(runs)] for name, runs in tuned.items()},
        replicates=[circuit(model) for model in replicates],
        delta_sweep=delta_sweep,
        sizes=sizes,
        permutations=permutations,
        bootstrap=bootstrap,
        splits=splits,
        seed=seed,
    )


def compare_circuits(
    base: Circuit,
    tuned: Mapping[str, Circuit | Sequence[Circuit]],
    *,
    replicates: Sequence[Circuit] = (),
    delta_sweep: Sequence[float] = DELTAS,
    sizes: Sequence[int | float] = SIZES,
    permutations: int = 1000,
    bootstrap: int = 1000,
    splits: int = 100,
    seed: int = 0,
    pairs: bool = True,
) -> Comparison:
    """Compare circuits that were found before, by one method on the same prompts; see `compare`.

    Halves, bootstraps and exchanges of prompts come from the circuits' per-prompt scores, with no forward pass; where
    a circuit has none, they are None. Without `pairs` the recipes are not held against each other.
    """
    _check_draws(permutations=permutations, bootstrap=bootstrap, splits=splits)
    _check_deltas(delta_sweep)
    draws = Draws(permutations, splits, bootstrap, seed)
    grouped = {name: _several(runs) for name, runs in tuned.items()}
    _check_any(grouped)
    known = HeadEffects.of(base, "the base")
    others = {
        run: _same(known, one, run)
        for name, runs in grouped.items()
        for run, one in zip(_run_names(name, len(runs)), runs, strict=True)
    }
    repeated = [_same(known, one, f"replicate {index}") for index, one in enumerate(replicates)]
    resampled = _bootstrap(known, others, draws)
    counts = sorted({max(1, head_count(one, known.count)) for one in sizes})
    kept = {run: keep(known, one, resampled.get(run), repeated, draws, counts) for run, one in others.items()}
    differences = []
    for first, second in combinations(grouped, 2) if pairs else ():
        runs = [_run_names(name, len(grouped[name])) for name in (first, second)]
        drawn = [[resampled[run] for run in names] if resampled.keys() >= set(names) else [] for names in runs]
        effects = [[others[run] for run in names] for names in runs]
        found = differ(known, (first, second), (effects[0], effects[1]), (drawn[0], drawn[1]), delta_sweep, draws)
        differences.append(found)
    settings = {
        "permutations": permutations,
        "bootstrap": bootstrap,
        "splits": splits,
        "seed": seed,
        "replicates": len(repeated),
        "heads": known.count,
        "prompts": known.prompts,
    }
    return Comparison(base, grouped, kept, differences, settings)


def over_bases(
    comparisons: Sequence[Comparison], first: str, second: str, *, permutations: int = 1000, seed: int = 0
) -> dict[str, PValue]:
    """Test over several bases that two recipes keep equally much, by exchanging whole runs within each base.

    The test to trust where a claim is about recipes and not about single checkpoints: heads may vary together from
    run to run in any way.

    Args:
        comparisons: One a base, each with runs of both recipes.
        first: Name of the recipe that is suspected of keeping less.
        second: Name of the other.
        permutations: How many exchanges to draw; all of them where they are no more.
        seed: Draws them and breaks ties.

    Returns:
        Every measure's p-value against the first keeping less, the bases weighing alike.
    """

    def values(name: str) -> list[list[dict[str, float]]]:
        return [[{m: run[m].value for m in KEEPS} for run in one.runs(name)] for one in comparisons]

    return exchange.seeds(values(first), values(second), permutations, seed)


def _bootstrap(base: HeadEffects, others: dict[str, HeadEffects], draws: Draws) -> dict[str, Any]:
    return bootstrap(base, others, draws.bootstrap, draws.seed)


def _same(base: HeadEffects, circuit: Circuit, name: str) -> HeadEffects:
    other = HeadEffects.of(circuit, name)
    check_same_heads(base, other, name)
    return other


def _circuit(circuit: Circuit) -> dict[str, Any]:
    """Return a circuit without what each prompt says, which would be most of the page."""
    return {**circuit.to_dict(), "per_prompt": None}


def _several(runs: T | Sequence[T]) -> list[T]:
    return list(runs) if isinstance(runs, (list, tuple)) else [runs]  # type: ignore[list-item]


def _run_names(name: str, count: int) -> list[str]:
    return [name] if count == 1 else [f"{name}/{index}" for index in range(count)]


def _check_any(grouped: Mapping[str, Sequence[object]]) -> None:
    empty = next((name for name, runs in grouped.items() if not runs), None)
    if not grouped or empty is not None:
        raise ConfigError(
            "tuned" if empty is None else f"recipe {empty!r}",
            expected="at least one model",
            found="none",
            fix='Pass {"sft": model, "grpo": model}.',
        )


def _check_draws(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ConfigError(name, expected="at least 1", found=repr(count), fix="Use 100 or more.")


def _check_deltas(deltas: Sequence[float]) -> None:
    for delta in deltas:
        if not 0.0 <= delta < 1.0:
            raise ConfigError(
                "delta_sweep", expected="numbers in [0, 1)", found=repr(delta), fix="m_h lies between 0 and 1."
            )
