"""Differential binary masking: one gate a head, trained to keep the answer with as few heads as can be.

A reconstruction of the circuit discovery of arXiv 2605.28860, of which a digest is known: a mask m_h in [0, 1] a head
mixes its output on a base prompt with that on a source prompt, ã_h = (1 − m_h)·a_h(base) + m_h·a_h(source); the loss is
−log p(target) + λ·Σ m_h; masks are annealed to binary; only they are trained. Which prompt is the base, whose answer
the target, and the schedule are not known.

The convention. λ makes m_h = 1 costly, so the circuit is {h : m_h = 1} and its heads must be the ones that bring the
target about. Were the base the prompt that the target answers, both terms would be least at m = 0 and every circuit
empty; so the target is the answer to the *source* prompt. With the clean prompt's answer as the target, the clean
prompt is the source, and the two readings differ in what the rest of the model sees:

- `keep` (default): the model runs on the clean prompt, where a gate of 1 leaves a head alone and a gate of 0 replaces
  it (`ablation`): ã_h = (1 − m_h)·replacement + m_h·own. A kept head is computed anew from what the gates before it
  let through, so a head that feeds another is needed too. {m_h = 1} is the smallest set of heads that keeps the answer
  when all others are replaced: what `judging` calls the circuit, for every ablation.
- `interchange`: the model runs on the counterfactual prompt, where a gate of 1 gives a head its output on the clean
  prompt. {m_h = 1} is the smallest set of heads that carries the clean answer over. Where the answer passes through
  several heads in a row, setting one of them is enough: it brings along what came before, and those after it compute
  on. So this is a cut through the circuit, where the information crosses, and not the whole of it.

A gate is σ((θ_h + s·ℓ) / T) with ℓ a logistic draw for each prompt (the binary concrete of arXiv 1712.01312). s falls
linearly to 0 and T geometrically, so the gates end as numbers near 0 or 1. Without draws (`noise=0`, as the masks of
2605.28860 may have been) heads that can stand in for each other see no gradient as long as all of them are on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from rlforget.circuits.forward import answer_logits
from rlforget.circuits.masked_runs import gated
from rlforget.circuits.methods.result import MethodResult
from rlforget.circuits.metrics import Metric, get
from rlforget.circuits.task import TaskBatch
from rlforget.circuits.trial import Trial
from rlforget.counting import counted
from rlforget.errors import ConfigError

CONVENTIONS = ("keep", "interchange")
LAMBDA_SHARES = (0.003, 0.01, 0.03, 0.1, 0.3)
"""The sweep of λ by default, as shares of what all heads together are worth: a head that is kept at a share of 0.1
saves at least a tenth of the loss."""


def score(
    trial: Trial,
    seed: int,
    *,
    convention: Literal["keep", "interchange"] = "keep",
    lambdas: Sequence[float] | None = None,
    seeds: int = 1,
    steps: int = 100,
    learning_rate: float = 0.15,
    temperature: tuple[float, float] = (1.0, 0.1),
    noise: float = 1.0,
    prompts: int = 6,
    faithful: float = 0.9,
    objective: str | Metric = "log_prob",
) -> MethodResult:
    """Train the gates at every λ of a sweep, and score each head by how much of the sweep it stays in.

    The scores are m_h, the mean final gate over λ and seeds, in [0, 1]: a head that stays only while it costs next to
    nothing has a low one. Heads that work against the task go first and have the lowest; a score here has no sign. The
    mask is the circuit of the largest λ that is still faithful; of several seeds, the heads that most of them keep.
    What heads are mixed with is computed once a batch and held for the whole task.

    Args:
        trial: The model and its task. The metric is not used by the loss (see `objective`), and `interchange` knows no
            ablation but `resample`, and only prompts of one length.
        seed: Seed of the draws and of the order of prompts.
        convention: Which of the two readings above.
        lambdas: λ in units of the objective a head; by default `LAMBDA_SHARES` times the objective's gap between all
            heads and none.
        seeds: Independent repeats, with `seed`, `seed` + 1, ...
        steps: Steps of Adam at each λ; all λ are trained side by side, as rows of one forward where they fit.
        learning_rate: Adam's.
        temperature: T at the first step and at the last.
        noise: s at the first step; 0 for no draws.
        prompts: Pairs a step.
        faithful: The normalised faithfulness (of the objective) that the mask must reach; if none does, the mask is
            the most faithful one.
        objective: The negative of the loss's first term, by default the mean log-probability of the target's tokens.

    Returns:
        The scores, the mask, and under `settings` the temperature schedule and every λ's circuit.

    Raises:
        ConfigError: An option out of range.
    """
    _check(convention, trial, seeds, steps, learning_rate, temperature, noise, prompts, lambdas)
    trainer = _Trainer(trial, _scenes(trial, convention), get(objective))
    every = torch.ones(2, *trial.sites.shape)
    every[1] = 0
    full, empty = trainer.values(every)
    swept = (
        [float(x) for x in lambdas] if lambdas is not None else [abs(full - empty) * share for share in LAMBDA_SHARES]
    )
    schedule = Schedule(steps, learning_rate, temperature, noise, prompts)
    gates = torch.stack([trainer.train(swept, schedule, seed + repeat) for repeat in range(seeds)])  # [S, λ, L, H]
    kept = gates.mean(0) > 0.5  # [λ, L, H]
    objectives = trainer.values(kept.float())
    faithfulness = [(value - empty) / (full - empty) if full != empty else math.nan for value in objectives]
    chosen = _choose(faithfulness, swept, faithful)
    sweep = [
        {"lambda": price, "size": int(mask.sum()), "objective": value, "faithfulness": share, "binary": _binary(found)}
        for price, mask, value, share, found in zip(
            swept, kept, objectives, faithfulness, gates.transpose(0, 1), strict=True
        )
    ]
    settings: dict[str, Any] = {
        "convention": convention,
        "seeds": seeds,
        "steps": steps,
        "learning_rate": learning_rate,
        "prompts": prompts,
        "noise": noise,
        "temperature": [schedule.temperature_at(step) for step in range(steps)],
        "objective": {"full": full, "empty": empty},
        "lambda": swept[chosen],
        "sweep": sweep,
    }
    return MethodResult(gates.mean((0, 1)).float(), kept[chosen], settings)


@dataclass(frozen=True)
class Schedule:
    """How gates are annealed; the fields are the options of `score`."""

    steps: int
    learning_rate: float
    temperature: tuple[float, float]
    noise: float
    prompts: int

    def temperature_at(self, step: int) -> float:
        """Return T, which falls geometrically."""
        first, last = self.temperature
        return float(first * (last / first) ** (step / max(self.steps - 1, 1)))

    def noise_at(self, step: int) -> float:
        """Return s, which falls linearly to 0 at the last step."""
        return self.noise * (1 - (step + 1) / self.steps)


@dataclass(frozen=True)
class _Scene:
    """A batch with what its heads' outputs are mixed with, computed once.

    Attributes:
        batch: The pairs.
        replacement: One tensor [B, T, heads, head_dim] a layer, or broadcastable to it.
        where: bool [B, T].
        prompts: Which prompts the model runs on.
        inverted: Whether a gate of 1 means the replacement rather than the head's own output.
    """

    batch: TaskBatch
    replacement: list[Tensor]
    where: Tensor
    prompts: Literal["clean", "counterfactual"]
    inverted: bool

    def rows(self, chosen: Tensor, times: int) -> _Scene:
        """Return some pairs, `times` times over."""
        pairs, batch = len(self.batch), self.batch.rows(chosen).repeat(times)
        news = [new[chosen].repeat(times, 1, 1, 1) if new.shape[0] == pairs else new for new in self.replacement]
        return _Scene(batch, news, self.where[chosen].repeat(times, 1), self.prompts, self.inverted)


@torch.no_grad()
def _scenes(trial: Trial, convention: str) -> list[_Scene]:
    scenes = []
    for number, batch in enumerate(trial.batches):
        where = trial.where(number)
        if convention == "keep":
            scenes.append(_Scene(batch, trial.replacement(number), where, "clean", False))
            continue
        with trial.sites.capture() as found:
            trial.note_clean(number, trial.metric(answer_logits(trial.model, batch), batch))
        scenes.append(_Scene(batch, list(found), where, "counterfactual", True))
    return scenes


class _Trainer:
    """Trains gates on a task.

    Args:
        trial: The model and its heads.
        scenes: The task's batches with their replacements.
        objective: What is to be high.
    """

    def __init__(self, trial: Trial, scenes: list[_Scene], objective: Metric) -> None:
        self.model, self.sites, self.scenes, self.objective = trial.model, trial.sites, scenes, objective
        self._rows = max(len(scene.batch) for scene in scenes)

    def train(self, lambdas: list[float], schedule: Schedule, seed: int) -> Tensor:
        """Return the final gates [λ, layers, heads] on the CPU."""
        generator = torch.Generator().manual_seed(seed)
        theta = torch.ones(len(lambdas), *self.sites.shape, device=self._device).requires_grad_()
        prices = torch.tensor(lambdas, device=self._device)
        optimizer = torch.optim.Adam([theta], lr=schedule.learning_rate)
        order = self._order(schedule.prompts, generator)
        for step in counted("steps", range(schedule.steps)):
            scene, chosen = next(order)
            optimizer.zero_grad()
            for group in torch.split(torch.arange(len(lambdas)), max(1, self._rows // len(chosen))):
                gates = self._draw(theta[group], len(chosen), schedule, step, generator)  # [λ, B, L, H]
                objective = self._objective(scene.rows(chosen, len(group)), gates.flatten(0, 1))
                loss = -objective.view(len(group), -1).mean(1) + prices[group] * gates.mean(1).sum((1, 2))
                loss.sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return (theta.detach() / schedule.temperature[1]).sigmoid().cpu()

    @torch.no_grad()
    def values(self, gates: Tensor) -> list[float]:
        """Return the mean objective of the whole task under each table of gates [tables, layers, heads]."""
        found = []
        for table in counted("masks", gates.to(self._device)):
            values = [self._objective(s, table.expand(len(s.batch), -1, -1)) for s in self.scenes]
            found.append(float(torch.cat(values).double().mean()))
        return found

    def _draw(self, theta: Tensor, rows: int, schedule: Schedule, step: int, generator: torch.Generator) -> Tensor:
        """Draw gates for each row: [λ, rows, layers, heads]."""
        uniform = torch.rand(theta.shape[0], rows, *theta.shape[1:], generator=generator)
        logistic = torch.logit(uniform, eps=1e-6).to(theta.device)
        return ((theta[:, None] + schedule.noise_at(step) * logistic) / schedule.temperature_at(step)).sigmoid()

    def _objective(self, scene: _Scene, gates: Tensor) -> Tensor:
        """Return the objective of each row under its own gates [B, layers, heads]."""
        with torch.set_grad_enabled(gates.requires_grad), self._edited(scene, gates):
            return self.objective(answer_logits(self.model, scene.batch, scene.prompts), scene.batch)

    def _edited(self, scene: _Scene, gates: Tensor) -> AbstractContextManager[None]:
        return gated(self.sites, 1 - gates if scene.inverted else gates, scene.replacement, scene.where)

    def _order(self, prompts: int, generator: torch.Generator) -> Iterator[tuple[_Scene, Tensor]]:
        """Yield a batch and the rows of it that a step takes, every pair once an epoch."""
        while True:
            parts = []
            for number, scene in enumerate(self.scenes):
                shuffled = torch.randperm(len(scene.batch), generator=generator).to(self._device)
                parts += [(number, rows) for rows in torch.split(shuffled, prompts)]
            for part in torch.randperm(len(parts), generator=generator).tolist():
                number, rows = parts[part]
                yield self.scenes[number], rows

    @property
    def _device(self) -> torch.device:
        return self.scenes[0].where.device


def _binary(gates: Tensor) -> float:
    """Return the share of gates [..., layers, heads] within 0.05 of 0 or 1."""
    return float(((gates < 0.05) | (gates > 0.95)).float().mean())


def _choose(faithfulness: list[float], lambdas: list[float], least: float) -> int:
    """Return the largest λ that is faithful, or else the most faithful one."""
    enough = [i for i, value in enumerate(faithfulness) if value >= least]
    if enough:
        return max(enough, key=lambdas.__getitem__)
    return max(range(len(lambdas)), key=lambda i: (not math.isnan(faithfulness[i]), faithfulness[i]))


def _check(
    convention: str,
    trial: Trial,
    seeds: int,
    steps: int,
    learning_rate: float,
    temperature: tuple[float, float],
    noise: float,
    prompts: int,
    lambdas: Sequence[float] | None,
) -> None:
    rules: list[tuple[str, bool, str, object]] = [
        ("convention", convention in CONVENTIONS, f"one of {', '.join(CONVENTIONS)}", convention),
        (
            "ablation",
            convention != "interchange" or trial.ablation == "resample",
            "resample, the only source an interchange has",
            trial.ablation,
        ),
        (
            "convention",
            convention != "interchange" or all(batch.of_one_length for batch in trial.batches),
            "keep, where the prompts of a pair differ in length",
            convention,
        ),
        ("seeds", seeds >= 1, "at least 1", seeds),
        ("steps", steps >= 1, "at least 1", steps),
        ("learning_rate", learning_rate > 0, "above 0", learning_rate),
        (
            "temperature",
            len(temperature) == 2 and temperature[0] >= temperature[1] > 0,
            "a fall to above 0",
            temperature,
        ),
        ("noise", noise >= 0, "at least 0", noise),
        ("prompts", prompts >= 1, "at least 1", prompts),
        ("lambdas", lambdas is None or (len(lambdas) > 0 and min(lambdas) >= 0), "one or more, from 0", lambdas),
    ]
    for name, holds, expected, found in rules:
        if not holds:
            raise ConfigError(f"masking, {name}", expected=expected, found=repr(found), fix=f"Give another {name}.")
