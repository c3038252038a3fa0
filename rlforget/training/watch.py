"""What happens after every step of a stage: the log, the progress, and the reasons to stop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rlforget.errors import NonFiniteError
from rlforget.training.config import StageConfig
from rlforget.training.log import Log
from rlforget.training.progress import Progress
from rlforget.weights.ranks import from_first

_LOGGED = {
    "loss": "loss",
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
    "reward": "reward",
    "reward_std": "reward_std",
    "entropy": "entropy",
    "kl": "kl",
    "completions/mean_length": "length",
    "completions/clipped_ratio": "cut_off",
    "mean_token_accuracy": "accuracy",
}


@dataclass
class Course:
    """How a stage went.

    Attributes:
        rewards: Mean sampled reward: with GRPO of every step's samples, with SFT of every try of `stop_at_reward`.
        losses: Loss of every step.
        stopped: Whether `stop_at_reward` ended the stage.
    """

    rewards: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    stopped: bool = False


class Watch:
    """Follows one stage.

    Args:
        name: The stage's name.
        stage: Its configuration.
        log: Where each step is written.
        progress: Who is told.
        measure: Measures the mean sampled reward now; used by SFT stages that stop at a reward.
    """

    def __init__(
        self, name: str, stage: StageConfig, log: Log, progress: Progress, measure: Callable[[], float]
    ) -> None:
        self.course = Course()
        self._before, self._started = 0.0, time.perf_counter()
        self._name, self._stage, self._log, self._progress, self._measure = name, stage, log, progress, measure

    def step(self, step: int, logs: dict[str, Any]) -> bool:
        """Note one optimizer step; return whether the stage is to end.

        Raises:
            NonFiniteError: The loss or the norm of the gradient is NaN or infinite.
        """
        figures = {ours: float(logs[theirs]) for theirs, ours in _LOGGED.items() if logs.get(theirs) is not None}
        for key in ("loss", "grad_norm"):
            if not math.isfinite(figures.get(key, 0.0)):
                raise self.diverged(key, str(figures[key]))
        self.course.losses.append(figures["loss"])
        if self._stage.method == "sft" and self._is_try(step):
            figures["reward"] = self._measure()
        if "reward" in figures:
            self.course.rewards.append(figures["reward"])
        self._log("step", stage=self._name, step=step, **figures)
        self._progress.advance(step, {key: figures[key] for key in ("reward", "loss") if key in figures})
        self.course.stopped = self._reached(figures)
        return self.course.stopped

    def go_on(self, course: Course, seconds: float) -> None:
        """Take up a stage where a checkpoint left it: how it went before, and what that took."""
        self.course, self._before = course, seconds

    def start(self) -> None:
        """Start the clock: what came before was the trainer's import."""
        self._started = time.perf_counter()

    def seconds(self) -> float:
        """Return what the stage took so far."""
        return self._before + time.perf_counter() - self._started

    def _is_try(self, step: int) -> bool:
        return self._stage.stop_at_reward is not None and step % self._stage.evaluate_every == 0

    def _reached(self, figures: dict[str, float]) -> bool:
        goal, window = self._stage.stop_at_reward, self._stage.stop_window
        if goal is None or "reward" not in figures:
            return False
        if self._stage.method == "sft":
            return figures["reward"] >= goal
        recent = self.course.rewards[-window:]
        return len(recent) == window and sum(recent) / window >= goal

    def diverged(self, what: str, found: str) -> NonFiniteError:
        """Build the fault of a stage whose numbers are no longer finite."""
        return NonFiniteError(
            f"stage {self._name!r}, step {len(self.course.losses) + 1}",
            expected=f"finite {what}",
            found=found,
            fix="Lower learning_rate, or set max_grad_norm.",
        )


def as_callback(watch: Watch) -> Any:
    """Wrap a watch as a transformers `TrainerCallback`."""
    from transformers import TrainerCallback

    class _Callback(TrainerCallback):  # type: ignore[misc]
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "loss" in logs:  # the last log of a run holds totals instead
                ended = watch.step(state.global_step, logs)
                watch.course.stopped = from_first(lambda: ended)  # or processes would wait for one that has stopped
                control.should_training_stop |= watch.course.stopped

    return _Callback()
