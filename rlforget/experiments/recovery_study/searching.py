"""The search of `rlforget rollback --auto`, judged on the evaluation prompts like every other rule."""

from __future__ import annotations

import time
from collections.abc import Iterator

from rlforget.errors import NothingGainedError, NothingLostError
from rlforget.experiments.recovery_study.scene import Live, Row
from rlforget.recovery import auto_rollback


def searched(live: Live) -> Iterator[Row]:
    """Let the search choose, on prompts of its own, and roll back what it chose."""
    started = time.perf_counter()
    try:
        found = auto_rollback(
            live.model,
            live.tokenizer,
            live.delta,
            restore=live.scene.earlier,
            protect=live.scene.later,
            samples=live.study.samples,
            evaluation=64,  # the report is not used here: all rules are judged alike, below
            seed=live.course.seed,
        )
    except (NothingLostError, NothingGainedError) as fault:  # on its prompts, beyond their noise
        yield live.row("auto, gave up", chosen=type(fault).__name__)
        return
    seconds = time.perf_counter() - started
    label = found.chosen.candidate.label
    yield {**live.tried("auto", found.what, n=live.study.samples, seconds=seconds), "chosen": label}


MEASURES = {"auto": searched}
