"""Refreshes of the earlier domain: plain, protected, and after a rollback; measured after several numbers of steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from rlforget.experiments.recovery_study.scene import Live, Row
from rlforget.recovery import rollback
from rlforget.training import contraction, refresh

SAMPLES = 8  # completions a prompt of GRPO
_DESCENT_SAMPLES = 128  # completions, all of them in every step


def plain(live: Live) -> Iterator[Row]:
    """Train on the earlier domain again."""
    yield from _refreshed(live, "refresh")


def protected(live: Live) -> Iterator[Row]:
    """The same, each step taken off the span of the later domains' gradients, or shortened by their Fishers."""
    for protection in ("project", "fisher"):
        yield from _refreshed(live, f"refresh, {protection}", protect=live.scene.later, protection=protection)


def after_rollback(live: Live) -> Iterator[Row]:
    """Roll back with few samples, then refresh: beside a refresh that draws as many samples in all."""
    n = live.study.samples // 4
    found, _ = live.subspace(passes=1, samples=n)
    drawn = n * (len(live.scene.earlier) + len(live.scene.later))
    with rollback(live.model, live.delta, found, seed=live.course.seed):
        yield live.judged("rollback, then refresh", steps=0, n=n, samples=drawn)
        yield from _refreshed(live, "rollback, then refresh", drawn=drawn, n=n)


def contracting(live: Live) -> Iterator[Row]:
    """Descend on the earlier domain's loss as the theorem has it, and follow the harmful component of what is left.

    `value` is ‖P_S(θ_t − θ_A)‖ over its start, `predicted` the bound on it.
    """
    found = contraction(
        live.model,
        live.delta,
        live.scene.earlier[0],
        steps=max(live.study.refresh_steps),
        samples=min(live.study.samples, _DESCENT_SAMPLES),
        seed=live.course.seed,
        tokenizer=live.tokenizer,
    )
    start = found.distances[0]
    for step in (0, *live.study.refresh_steps):
        values = {"value": found.distances[step] / start, "predicted": found.bound[step] / start}
        yield live.row("contraction", steps=step, n=found.rank, **values)


def _refreshed(live: Live, rule: str, *, drawn: int = 0, n: int | None = None, **options: Any) -> Iterator[Row]:
    """Refresh the one earlier domain; a row after each of the steps at which it is looked at."""
    (domain,) = live.scene.earlier
    length = live.study.methods[live.course.method].earlier
    a_step = length.prompts * (SAMPLES if live.course.method == "grpo" else 1)
    rows: list[Row] = []

    def look(step: int) -> None:
        if step in live.study.refresh_steps:
            rows.append(live.judged(rule, steps=step, n=n, samples=drawn + step * a_step))

    with live.kept_bits():
        refresh(
            live.model,
            live.tokenizer,
            domain,
            steps=max(live.study.refresh_steps),
            method=live.course.method,
            learning_rate=length.learning_rate,
            prompts=length.prompts,
            seed=1000 * live.course.seed + 999,  # a stage's seed is its place among few
            progress=False,
            callbacks=[_at_steps(look)],
            **options,
        )
    yield from rows


def _at_steps(look: Callable[[int], None]) -> Any:
    """Call `look` after every optimizer step, however the step was bent, with the random states as they were."""
    from transformers import TrainerCallback

    class _AtSteps(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            look(state.global_step)

    return _AtSteps()


MEASURES = {"refresh": plain, "protected": protected, "after_rollback": after_rollback, "contraction": contracting}
