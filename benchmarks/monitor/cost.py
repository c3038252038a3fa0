"""The monitor's share of a real trainer's time, and what it adds to it."""

from __future__ import annotations

import statistics
import time
from typing import Any

import rlforget as rf
from rlforget.domains.miniature.pretrain import build_model
from rlforget.domains.miniature.tokenizer import build_tokenizer
from rlforget.training import StageConfig, train_stage

EVERY = 10
OPTIONS: dict[str, dict[str, Any]] = {
    "change": {},
    "and the damage of two domains": {"protect": ["math", "code"], "held_samples": 0},
    "and their KL": {"protect": ["math", "code"]},
}
"""What is measured, each with all that stands before it."""


def measure(size: str, method: Any, steps: int) -> dict[str, Any]:
    """Train a random model of a size with each of `OPTIONS`, and return what the measurements took of a step's time.

    A step's time is the median of those of the same run that were not measured, so that both were taken on a machine
    as busy as it was.
    """
    prompts = 128 if method == "sft" else 16  # 128 sequences a step, of 8 samples a prompt with GRPO
    stage = StageConfig(domain="writing", method=method, steps=steps, prompts=prompts, learning_rate=1e-4)
    found: dict[str, Any] = {"size": size, "method": method, "steps": steps, "every": EVERY}
    for name, options in OPTIONS.items():
        monitor = rf.ForgettingMonitor(every=EVERY, **options)
        clock = _clock()
        train_stage(build_model(0, size), build_tokenizer(), stage, seed=0, progress=False, callbacks=[clock, monitor])
        assert monitor.tracker is not None
        step = statistics.median(taken for at, taken in clock.steps if at % EVERY and at > 1)
        seconds = statistics.median(figures.seconds for figures in monitor.tracker.measured[1:])
        found[name] = {"step_seconds": step, "measurement_seconds": seconds, "share": seconds / (EVERY * step)}
    return found


def _clock() -> Any:
    from transformers import TrainerCallback

    class Clock(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.steps: list[tuple[int, float]] = []
            self.started = 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.started = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
            self.steps.append((state.global_step, time.perf_counter() - self.started))

    return Clock()
