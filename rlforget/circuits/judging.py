"""How well a set of heads stands for the whole model: its faithfulness, and the curve of that over sizes.

Everywhere F is the mean of a metric over a task's prompts, and the model runs on the clean prompts: heads in the set
work as they are, the others' outputs are replaced by the source's (the counterfactual prompt's, the mean, or zero).
What a kept head computes still depends on what the replaced heads before it passed on. F(M) is the whole model, F(∅)
the model with every head replaced; embeddings and feed-forward layers stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from rlforget.circuits.circuit import Circuit
from rlforget.circuits.intervals import Interval, bootstrap
from rlforget.circuits.masked_runs import MaskedRuns, check_mask
from rlforget.circuits.task import Task
from rlforget.errors import ConfigError, UndefinedCircuitError

MIB_SIZES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""The circuit sizes of MIB (arXiv 2504.13151), as shares of all components."""


@dataclass(frozen=True)
class Faithfulness:
    """How much of the model's behaviour a circuit keeps.

    Attributes:
        full: F(M), the mean metric of the whole model.
        circuit: F(C), of the circuit alone.
        empty: F(∅), with every head replaced.
        ratio: F(C) / F(M). It reads as a share only where F(M) > 0 and 0 means "cannot do it": so for `probability` and
            `log_prob_difference`, but for `log_prob`, which is negative, a better circuit has a smaller ratio.
        normalised: (F(C) − F(∅)) / (F(M) − F(∅)): 0 as good as no head, 1 as good as all, and above 1 where the circuit
            leaves out heads that work against the task.
        size: Heads in the circuit.
        heads: Heads in the model.
        prompts: float64 [3, prompts], the metric of each prompt: whole model, circuit, empty.
    """

    full: float
    circuit: float
    empty: float
    ratio: float
    normalised: float
    size: int
    heads: int
    prompts: Tensor

    def interval(self, form: str = "normalised", *, draws: int = 1000, level: float = 0.95, seed: int = 0) -> Interval:
        """Return a bootstrap interval over prompts.

        Args:
            form: `normalised` or `ratio`.
            draws: Number of resamples.
            level: The interval's level.
            seed: Seed of the resamples.

        Raises:
            ConfigError: Another form, or settings that `bootstrap` refuses.
        """
        forms = {"normalised": _normalised, "ratio": _ratio}
        if form not in forms:
            raise ConfigError("form", expected=f"one of {', '.join(forms)}", found=repr(form), fix="Choose one.")
        return bootstrap(self.prompts, forms[form], draws=draws, level=level, seed=seed)

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain numbers, without the prompts'."""
        names = ("full", "circuit", "empty", "ratio", "normalised", "size", "heads")
        return {name: getattr(self, name) for name in names}


def evaluate_circuit(
    model: nn.Module, task: Task, mask: Tensor, *, tokenizer: Any = None, **options: Any
) -> Faithfulness:
    """Measure how much of the model's behaviour a set of heads keeps.

    Args:
        model: A causal language model.
        task: The task.
        mask: bool [layers, heads], the circuit.
        tokenizer: Encodes the task's text; by default the one in the model's folder.
        **options: `metric`, `ablation`, `positions`, `batch_size` and `samples`, as in `find`.

    Raises:
        ConfigError: A mask of another shape.
        UndefinedCircuitError: F(M) = F(∅): replacing all heads changes nothing, so nothing can be explained.
    """
    runs = MaskedRuns(model, task, tokenizer=tokenizer, **options)
    mask = check_mask(mask, runs.shape)
    values = runs.values(torch.stack([torch.ones_like(mask), mask, torch.zeros_like(mask)]))
    full, circuit, empty = values.mean(1).tolist()
    check_gap(full, empty)
    means = values.mean(1, keepdim=True)
    return Faithfulness(
        full,
        circuit,
        empty,
        float(_ratio(means)),
        float(_normalised(means)),
        int(mask.sum()),
        mask.numel(),
        values,
    )


@dataclass(frozen=True)
class Curve:
    """Faithfulness over circuit sizes.

    Attributes:
        sizes: Shares of all heads, ascending.
        counts: Heads at each size, ⌊share · all heads⌋ as in MIB: in small models the first circuits are empty.
        faithfulness: Normalised faithfulness of the heads of highest score.
        faithfulness_absolute: Of the heads of highest |score|.
        cpr: Circuit performance ratio: the area under `faithfulness`; higher is better, and above the grid's width is
            possible. It rewards finding the heads that help.
        cmd: Circuit–model distance: the area between `faithfulness_absolute` and 1; 0 is best. It rewards finding the
            heads that matter, whichever way.
        full: F(M).
        empty: F(∅).
        prompts: float64 [2 + 2 · sizes, prompts]: whole model, empty, then each size by score, then each by |score|.
    """

    sizes: tuple[float, ...]
    counts: tuple[int, ...]
    faithfulness: tuple[float, ...]
    faithfulness_absolute: tuple[float, ...]
    cpr: float
    cmd: float
    full: float
    empty: float
    prompts: Tensor

    def interval(self, area: str = "cpr", *, draws: int = 1000, level: float = 0.95, seed: int = 0) -> Interval:
        """Return a bootstrap interval over prompts of `cpr` or `cmd`.

        Raises:
            ConfigError: Another area, or settings that `bootstrap` refuses.
        """
        if area not in ("cpr", "cmd"):
            raise ConfigError("area", expected="cpr or cmd", found=repr(area), fix="Choose one.")
        count = len(self.sizes)
        rows = slice(2, 2 + count) if area == "cpr" else slice(2 + count, None)
        area_of = _area_under if area == "cpr" else _area_from_one

        def statistic(means: Tensor) -> Tensor:
            return area_of(self.sizes, (means[rows] - means[1]) / (means[0] - means[1]))

        return bootstrap(self.prompts, statistic, draws=draws, level=level, seed=seed)

    def to_dict(self) -> dict[str, Any]:
        """Return the curve as plain numbers, without the prompts'."""
        names = ("sizes", "counts", "faithfulness", "faithfulness_absolute", "cpr", "cmd", "full", "empty")
        values = {name: getattr(self, name) for name in names}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def curve(
    model: nn.Module,
    task: Task,
    circuit: Circuit | Tensor,
    *,
    sizes: Sequence[float] = MIB_SIZES,
    tokenizer: Any = None,
    **options: Any,
) -> Curve:
    """Measure faithfulness at several circuit sizes, with its area and its distance from the model.

    As MIB defines them (arXiv 2504.13151; its code, `evaluate_area_under_curve`): faithfulness is
    (F(C_k) − F(∅)) / (F(M) − F(∅)) of the best ⌊k·N⌋ components; CPR is its area by the trapezoid rule over the grid,
    with the components ranked by score; CMD is the area of |1 − faithfulness|, with the components ranked by |score|.
    The grid begins at its first size, so that a perfect method has CPR 0.999 and CMD 0 on MIB's. MIB counts edges of a
    graph; here the components are attention heads.

    Args:
        model: A causal language model.
        task: The task.
        circuit: A circuit whose scores rank the heads, or the scores, [layers, heads].
        sizes: Shares of all heads, ascending, from 0 to 1.
        tokenizer: Encodes the task's text; by default the one in the model's folder.
        **options: `metric`, `ablation`, `positions`, `batch_size` and `samples`, as in `find`.

    Raises:
        ConfigError: Sizes out of range or order, or scores of another shape.
        UndefinedCircuitError: F(M) = F(∅).
    """
    sizes = _checked_sizes(sizes)
    runs = MaskedRuns(model, task, tokenizer=tokenizer, **options)
    scores = _checked_scores(circuit, runs.shape)
    counts = tuple(int(size * scores.numel() + 1e-9) for size in sizes)  # 0.29 · 100 is below 29 in float64
    signed = [_top(scores, count) for count in counts]
    absolute = [_top(scores.abs(), count) for count in counts]
    every = torch.ones_like(signed[0])
    values = runs.values(torch.stack([every, ~every, *signed, *absolute]))
    full, empty = values[:2].mean(1).tolist()
    check_gap(full, empty)
    faithful = (values[2:].mean(1) - empty) / (full - empty)
    by_score, by_size = faithful.split(len(sizes))
    return Curve(
        sizes,
        counts,
        tuple(by_score.tolist()),
        tuple(by_size.tolist()),
        float(_area_under(sizes, by_score[:, None])),
        float(_area_from_one(sizes, by_size[:, None])),
        full,
        empty,
        values,
    )


def _normalised(means: Tensor) -> Tensor:
    """From [3, draws] means of the whole model, the circuit and the empty one to [draws]."""
    return (means[1] - means[2]) / (means[0] - means[2])


def _ratio(means: Tensor) -> Tensor:
    return means[1] / means[0]


def _area_under(sizes: Sequence[float], faithful: Tensor) -> Tensor:
    """Area by the trapezoid rule, from [sizes, draws] to [draws]."""
    return torch.trapezoid(faithful, torch.tensor(sizes, dtype=faithful.dtype), dim=0)


def _area_from_one(sizes: Sequence[float], faithful: Tensor) -> Tensor:
    return _area_under(sizes, (1 - faithful).abs())


def _top(scores: Tensor, count: int) -> Tensor:
    return Circuit(scores, torch.zeros_like(scores, dtype=torch.bool), "ranking").top(count)


def check_gap(full: float, empty: float) -> None:
    """Raise UndefinedCircuitError where F(M) = F(∅)."""
    if abs(full - empty) <= 1e-6 * max(abs(full), abs(empty)):  # below the rounding of a float32 forward
        raise UndefinedCircuitError(
            "faithfulness",
            expected="a metric that changes when the heads are replaced",
            found=f"{full:.6g} with all heads and {empty:.6g} with none",
            fix="Choose counterfactuals, an ablation or a metric that the heads have a say in.",
        )


def _checked_scores(circuit: Circuit | Tensor, shape: tuple[int, int]) -> Tensor:
    scores = circuit.scores if isinstance(circuit, Circuit) else circuit
    if tuple(scores.shape) != shape:
        raise ConfigError(
            "scores",
            expected=f"{list(shape)}, one a head",
            found=str(list(scores.shape)),
            fix="Use a circuit of this architecture.",
        )
    return scores.detach().float().cpu()


def _checked_sizes(sizes: Sequence[float]) -> tuple[float, ...]:
    found = tuple(float(size) for size in sizes)
    rising = all(a < b for a, b in pairwise(found))
    if len(found) < 2 or not rising or found[0] < 0 or found[-1] > 1:
        raise ConfigError(
            "sizes", expected="two or more shares from 0 to 1, rising", found=str(found), fix="Sort them."
        )
    return found
