"""Find the circuit of a task in a model."""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterable
from dataclasses import replace
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from rlforget.circuits.ablation import Positions
from rlforget.circuits.circuit import Circuit, head_count
from rlforget.circuits.forward import answer_logits, device_of, measuring
from rlforget.circuits.heads import HeadSites
from rlforget.circuits.methods import METHODS, Method
from rlforget.circuits.metrics import Metric, get, name_of
from rlforget.circuits.task import Task, TaskBatch
from rlforget.circuits.trial import Trial
from rlforget.errors import ConfigError, EmptyDomainError
from rlforget.interference.completions import tokenizer_of


def find(
    model: Any,
    task: Task | str,
    method: str = "eap-ig",
    *,
    tokenizer: Any = None,
    metric: str | Metric = "log_prob_difference",
    ablation: str = "resample",
    positions: Positions = "all",
    size: int | float | None = None,
    floor: float = 0.01,
    batch_size: int = 32,
    samples: int | None = None,
    seed: int = 0,
    **method_options: Any,
) -> Circuit:
    """Score every attention head by what replacing its output costs the task, and pick the circuit.

    The model is left as it was found, on its device and in its dtype; no random state is touched.

    Args:
        model: A decoder-only causal language model of transformers.
        task: Pairs of prompts, or the name of a domain (see `Task.from_domain`).
        method: `patching` (exact), `attribution` (one gradient), `eap-ig` (integrated gradients), `masking` (learned
            masks) or `random`; see their modules for the papers.
        tokenizer: Encodes the prompts; by default the one in the model's folder.
        metric: `log_prob_difference`, `log_prob`, `probability`, or a function (see `metrics.Metric`).
        ablation: What a head's output is replaced by: `resample` (its output on the counterfactual prompt), `mean`
            (its mean over counterfactual prompts and positions) or `zero`.
        positions: Where it is replaced: `all`, `last`, or spans of the prompt's tokens (see `ablation.Positions`).
        size: Heads in the circuit: how many, or which share of all (a float); to compare circuits, give one. By default
            the method's own choice (`masking`, `random`), or else the heads that clear the floor.
        floor: The least score of a head of the circuit where no size is given, as a share of |F(M) − F(∅)|, what all
            heads together are worth. A score must also lie two standard errors over prompts above 0. Without a floor
            about half of all heads are in a circuit, whatever the task: where nothing is there, half of the scores are
            a little above 0.
        batch_size: Pairs a forward.
        samples: How many pairs are used, the first ones; by default all.
        seed: Seed of what the method draws.
        method_options: Options of the method, e.g. `steps` of `eap-ig`.

    Raises:
        LayoutError: A model whose heads cannot be read (see `HeadSites`).
        TaskError: A pair that cannot be compared.
        UndefinedCircuitError: The metric is the same with every head replaced.
        NonFiniteError: The metric is NaN or Inf.
        UnknownNameError: There is no such method, metric or ablation.
        ConfigError: An option that the method does not have, or a value out of range.
    """
    started = time.perf_counter()
    scorer, measure = _checked(method, method_options), get(metric)
    sites = HeadSites(model)
    if size is not None:
        head_count(size, sites.shape[0] * sites.shape[1])
    if not floor >= 0:
        raise ConfigError("floor", expected="a share, at least 0", found=repr(floor), fix="Write 1% as 0.01.")
    batches = task_batches(model, task, tokenizer, batch_size=batch_size, samples=samples)
    with measuring(model), sites.observable(lambda: answer_logits(model, batches[0].rows(slice(1)))):
        trial = Trial(model, sites, batches, measure, ablation, positions)
        result = scorer(trial, seed, **method_options)
        values = trial.values()
    scores = result.scores.detach().float().cpu()
    mask = result.mask.cpu() if result.mask is not None else _above_floor(scores, result.per_prompt, values, floor)
    settings = {
        "ablation": ablation,
        "positions": positions if isinstance(positions, str) else [list(span) for span in positions],
        "samples": sum(map(len, batches)),
        "batch_size": batch_size,
        "size": size,
        "floor": floor,
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        **result.settings,
    }
    summary: dict[str, Any] = {"name": name_of(metric)}
    summary |= {name: float(value.mean()) for name, value in values.items()}
    summary["per_prompt"] = {name: value.tolist() for name, value in values.items()}
    prompts = None if result.per_prompt is None else result.per_prompt.detach().float().cpu()
    circuit = Circuit(scores, mask, method, summary, settings, seed, time.perf_counter() - started, prompts)
    return circuit if size is None else _of_size(circuit, size)


def task_batches(
    model: Any, task: Task | str, tokenizer: Any = None, *, batch_size: int = 32, samples: int | None = None
) -> list[TaskBatch]:
    """Encode a task for a model, on the model's device.

    Raises:
        EmptyDomainError: The task has no pair.
        TaskError: A pair that cannot be compared.
        ConfigError: No tokenizer, or a number out of range.
    """
    chosen = Task.from_domain(task) if isinstance(task, str) else task
    if samples is not None:
        if samples < 1:
            raise ConfigError("samples", expected="at least 1", found=repr(samples), fix="Use one pair or more.")
        chosen = Task(chosen.name, chosen.pairs[:samples])
    if not chosen.pairs:
        raise EmptyDomainError(
            f"task {chosen.name!r}", expected="at least one pair", found="none", fix="Give it pairs of prompts."
        )
    if any(isinstance(pair.clean, str) for pair in chosen.pairs):
        tokenizer = tokenizer_of(model, tokenizer)
    device = device_of(model)
    return [batch.to(device) for batch in chosen.encode(tokenizer, batch_size)]


def _checked(method: str, options: dict[str, Any]) -> Method:
    scorer = METHODS[method]
    known = {
        name: parameter.default
        for name, parameter in inspect.signature(scorer).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    for name, value in options.items():
        where = f"option {name!r} of method {method!r}"
        if name not in known:
            expected = f"one of {', '.join(known)}" if known else "no option"
            raise ConfigError(where, expected=expected, found=repr(name), fix="Check the spelling.")
        expected, fits = _kind(known[name], value)
        if not fits:
            raise ConfigError(where, expected=expected, found=repr(value), fix=f"By default it is {known[name]!r}.")
    return scorer


def _kind(default: object, value: object) -> tuple[str, bool]:
    """Say what kind of value an option takes, by its default, and whether this one is of it."""
    if isinstance(default, bool):
        return "true or false", isinstance(value, bool)
    if isinstance(default, str):
        return "a name", isinstance(value, str) or callable(value)
    if default is None or isinstance(default, tuple):
        series = isinstance(value, Iterable) and not isinstance(value, str) and all(map(_is_number, value))
        return "a list of numbers", series or value is default
    if isinstance(default, int):
        return "a whole number", isinstance(value, Integral) and _is_number(value)
    return "a number", _is_number(value)


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _above_floor(scores: Tensor, per_prompt: Tensor | None, values: dict[str, Tensor], floor: float) -> Tensor:
    gap = abs(float(values["clean"].mean() - values["ablated"].mean()))
    error = torch.zeros_like(scores)
    if per_prompt is not None and len(per_prompt) > 1:
        error = per_prompt.detach().float().cpu().std(0) / len(per_prompt) ** 0.5
    return (scores > 2 * error) & (scores >= floor * gap)


def _of_size(circuit: Circuit, size: int | float) -> Circuit:
    return replace(circuit, mask=circuit.top(size))
