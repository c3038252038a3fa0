"""The monitor of a plain training loop; `ForgettingMonitor` is the same as a trainer's callback."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn

from rlforget import domains
from rlforget.delta.stats import Change, combine
from rlforget.domains import Score
from rlforget.errors import ConfigError, ForgettingWarning, NothingToCommitError
from rlforget.history import History, Stage
from rlforget.interference.completions import tokenizer_of
from rlforget.interference.divergence import Divergence
from rlforget.training.log import JsonLinesLog, Log
from rlforget.training.monitor.dependence import Dependence
from rlforget.training.monitor.earlier import ChangedEarlier
from rlforget.training.monitor.figures import Figures
from rlforget.training.monitor.held import Held
from rlforget.training.monitor.keeping import Keeper
from rlforget.training.monitor.measuring import added, measure
from rlforget.training.monitor.one_step import OneStep
from rlforget.training.monitor.reference import Reference
from rlforget.training.monitor.settings import MonitorSettings
from rlforget.training.monitor.trained import Trained
from rlforget.training.protection import Guard, guard_for
from rlforget.weights import check_layout, open_weights
from rlforget.weights.ranks import gathered, is_first
from rlforget.weights.sharding import settle, together

_HELD_SEED = 2_000_003


class Tracker:
    """Follows what a run changes and what that costs earlier domains, while it runs.

        tracker = rf.Tracker(model, optimizer, protect=["math"], log="forgetting.jsonl")
        ...                # the loop, as it was
        tracker.finish()   # measures once more, and commits

    Nothing of the run is touched, but by a guard: the same seeds give the same bits with it and without. On a sharded
    model every rank makes one, with the same options; what they find is added up over the ranks, and all go through the
    same completions. A guard is then not taken.

    Args:
        model: The model that is trained.
        optimizer: Its optimizer, whose every step is counted and, in time, measured. None: call `before_step` and
            `after_step` around each.
        settings: What to do; instead of `options`.
        step: Optimizer steps that were taken before.
        options: The attributes of `MonitorSettings`.

    Attributes:
        step: Optimizer steps so far.
        measured: Every measurement, the first before the first step.
        should_stop: Whether a warning was given and `stop` asked for.
        stages: What was committed.

    Raises:
        ConfigError: Options that cannot be, or not with this model.
        LayoutError: The reference, an earlier delta or the history is of another architecture.
        ParameterError: Nothing is trained.
        RlforgetError: Whatever sampling the protected domains, opening the history or the log raises.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        settings: MonitorSettings | None = None,
        step: int = 0,
        **options: Any,
    ) -> None:
        self.step = step
        self.measured: list[Figures] = []
        self.stages: list[Stage] = []
        self.should_stop = False
        self._finished = False
        self._model = model
        self._settings = chosen = settings or MonitorSettings(**options)
        trained = Trained(model)
        if trained.sharding is not None and chosen.guard is not None:
            raise _unguarded()
        self._trained = trained
        self._history = _fitting_history(chosen, model)
        keeper = Keeper(chosen.keep, chosen.folder)

        def reference() -> Reference:
            weights = None if chosen.reference is None else open_weights(chosen.reference)
            return Reference(trained, keeper, chosen.dtype, weights)

        def earlier() -> dict[str, ChangedEarlier]:
            return {name: ChangedEarlier(delta, trained, keeper) for name, delta in chosen.deltas().items()}

        # Each rank reads ranges of its own: where one finds damage, or no room, the others must not wait for it.
        self._reference = together(reference, trained.sharding)
        self._earlier = together(earlier, trained.sharding)
        self._evaluated = [domains.get(domain) for domain in chosen.evaluate]
        self._protect(keeper)
        self._one_step = OneStep(trained)
        self._watched: Change | None = None
        self._looking = 0.0  # seconds spent on the one step
        self._committed_at = step
        self._warned: set[str] = set()
        self._log, self._close = together(lambda: _open_log(chosen), trained.sharding)
        self.measure()
        self._hooks: list[Any] = []
        if optimizer is not None:
            inner = getattr(optimizer, "optimizer", optimizer)  # accelerate's wrapper has no hooks of its own
            self._hooks = [
                inner.register_step_pre_hook(lambda *_: self.before_step()),
                inner.register_step_post_hook(self._stepped),
            ]

    def _protect(self, keeper: Keeper) -> None:
        chosen, protected = self._settings, self._settings.protected()
        needed = bool(protected or self._evaluated)
        self._tokenizer = tokenizer_of(self._model, chosen.tokenizer) if needed else None
        drawn: dict[str, Any] = {"seed": chosen.seed, "tokenizer": self._tokenizer}
        apart = drawn | {"seed": chosen.seed + _HELD_SEED}  # not the prompts that a guard or a Fisher knows
        self._dependences, self._held = dict[str, Dependence](), dict[str, Held]()
        for name, batches in protected.items():
            if chosen.held_samples:
                self._held[name] = Held(self._model, batches, samples=chosen.held_samples, **apart)
            if chosen.fisher_samples:
                dependence = Dependence(
                    self._model, self._trained, keeper, batches, samples=chosen.fisher_samples, **drawn
                )
                self._dependences[name] = dependence
        self._guard: Guard | None = None
        if chosen.guard is not None:
            spared = list(protected.values())
            self._guard = guard_for(
                self._model, self._tokenizer, spared, chosen.guard, samples=chosen.guard_samples, seed=chosen.seed
            )

    def before_step(self) -> None:
        """Note the weights before an optimizer step that is going to be measured, and let the guard act."""
        if (self.step + 1) % self._settings.every == 0:
            started = time.perf_counter()
            self._one_step.begin()
            self._looking = time.perf_counter() - started
        if self._guard is not None:
            self._guard.before_step()

    def after_step(self) -> Figures | None:
        """Count an optimizer step, and do what is due after it.

        Returns:
            The measurement, where one was due.
        """
        self.step += 1
        if self._guard is not None:
            self._guard.after_step()
        chosen, figures = self._settings, None
        if self.step % chosen.every == 0:
            started = time.perf_counter()
            self._watched = self._one_step.end()
            self._looking += time.perf_counter() - started
            figures = self.measure(
                evaluate=chosen.evaluate_every is not None and self.step % chosen.evaluate_every == 0
            )
        if chosen.commit_every is not None and self.step % chosen.commit_every == 0:
            self._commit()
        return figures

    def _stepped(self, *_: Any) -> None:
        self.after_step()

    def measure(self, *, evaluate: bool = True) -> Figures:
        """Measure now, log it, and warn where that is due.

        Args:
            evaluate: Sample the rewards of the evaluated domains too.
        """
        started = time.perf_counter()
        found = measure(self._reference, self._dependences, self._earlier)
        watched = self._watched
        if self._trained.sharding is not None:
            found = added(gathered(found))
            watched = None if watched is None else combine(gathered(watched))
        divergence = {name: held.divergence(self._model) for name, held in self._held.items()}
        seconds = self._looking + time.perf_counter() - started
        figures = Figures(
            step=self.step,
            change=found.change,
            frozen=self._trained.frozen,
            one_step=watched,
            overlaps=found.overlaps(),
            damage={name: energy / 2 for name, energy in found.energies.items()},
            conflict=found.conflicts({name: one.mean for name, one in self._dependences.items()}),
            divergence=divergence,
            rewards=self._rewards() if evaluate else {},
            guarded={} if self._guard is None else self._guard.figures(),
            seconds=seconds,
        )
        self._watched, self._looking = None, 0.0
        self.measured.append(figures)
        self._note("forgetting", **figures.to_dict())
        self._warn(figures)
        return figures

    def finish(self) -> Figures:
        """Measure and evaluate a last time, unless that is done, commit, and leave the optimizer alone.

        Returns:
            The last measurement.
        """
        if not self._finished:
            last = self.measured[-1]
            if last.step != self.step:
                self.measure()
            elif self._evaluated and not last.rewards:
                self.measured[-1] = replace(last, rewards=self._rewards())
                self._note("forgetting", **self.measured[-1].to_dict())
            if self._history is not None and self._committed_at != self.step:
                self._commit()
            self._let_go()
        return self.measured[-1]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.finish()
        else:
            self._let_go()

    def _let_go(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._close()
        self._finished = True

    def _note(self, event: str, **fields: Any) -> None:
        if self._log is not None:
            self._log(event, **fields)

    def _rewards(self) -> dict[str, Score]:
        chosen = self._settings
        rewards = {
            domain.name: domains.evaluate(
                self._model, self._tokenizer, domain, count=chosen.evaluate_count, seed=chosen.seed
            )
            for domain in self._evaluated
        }
        settle(self._model)
        return rewards

    def _warn(self, figures: Figures) -> None:
        limit = self._settings.warn_at
        if limit is None:
            return
        for name in self._settings.protected():
            predicted, measured = figures.damage.get(name), figures.divergence.get(name)
            known = [] if predicted is None else [predicted]
            known += [] if measured is None else [measured.mean]
            if name in self._warned or all(value <= limit for value in known):  # NaN is not
                continue
            self._warned.add(name)
            self.should_stop = self.should_stop or self._settings.stop
            message = _message(figures.step, name, predicted, measured, limit)
            self._note("warning", step=figures.step, domain=name, message=message)
            if is_first():
                warnings.warn(message, ForgettingWarning, stacklevel=2)

    def _commit(self) -> None:
        assert self._history is not None
        self._committed_at = self.step
        if self.measured[-1].step != self.step:
            self.measure(evaluate=False)
        if self._trained.sharding is None and not is_first():
            return
        try:
            stage = self._history.commit(
                self._model,
                domain=self._settings.domain,
                message=f"step {self.step}",
                config={"step": self.step},
                metrics=self.measured[-1].flat(),
            )
        except NothingToCommitError:
            return  # a run that changed nothing since is no fault
        self.stages.append(stage)
        self._note("commit", step=self.step, stage=stage.name)


def _message(step: int, name: str, predicted: float | None, measured: Divergence | None, limit: float) -> str:
    found = [] if predicted is None else [f"predicted damage {predicted:.3g}"]
    if measured is not None:
        found.append(f"KL {measured.mean:.3g} ± {measured.stderr:.1g}")
    fix = "Stop here, lower the learning rate, set guard=, or undo what hurts it afterwards with rlforget.rollback."
    return f"step {step}, domain {name!r}: {' and '.join(found)} nats a completion, of at most {limit:g}. {fix}"


def _unguarded() -> ConfigError:
    return ConfigError(
        "guard",
        expected="none with a model whose parameters are sharded",
        found="shards on several ranks",
        fix="Leave it out: what protected domains lose is measured all the same.",
    )


def _fitting_history(chosen: MonitorSettings, model: nn.Module) -> History | None:
    """Open the history, and see now rather than at the end that the model fits it."""
    if chosen.history is None:
        return None
    history = chosen.history if isinstance(chosen.history, History) else History.open(chosen.history)
    check_layout(history.weights("HEAD"), open_weights(model, shards=True))
    return history


def _open_log(chosen: MonitorSettings) -> tuple[Log | None, Callable[[], None]]:
    """Return the log of this rank and what closes it."""
    if chosen.log is None or not is_first():
        return None, lambda: None
    if callable(chosen.log):
        return chosen.log, lambda: None
    opened = JsonLinesLog(Path(chosen.log))
    return opened, lambda: opened.__exit__(None, None, None)
