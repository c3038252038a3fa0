"""How few directions the conflict lies in: the measured subspace, its curve by reward, and random directions."""

from __future__ import annotations

import time
from collections.abc import Iterator

from rlforget.experiments.measure import regained, rewards
from rlforget.experiments.recovery_study.scene import Live, Row
from rlforget.interference import measure_subspace

_COUNTS = (1, 4, 16, 64, 256)


def curve(live: Live) -> Iterator[Row]:
    """Take back the share of δ along more and more directions; `value` is what the linear model explains.

    Beside it, in `value`: the effective rank of the earlier domains' Gram matrix (and in `predicted` how few directions
    explain 90%), and the overlap of the two sides' spans (and that by chance).
    """
    earlier = live.scene.earlier

    def share() -> float:
        after = rewards(live.model, live.tokenizer, count=live.study.evaluation_prompts, names=earlier)
        return regained(live.then, live.now, after, earlier)

    started = time.perf_counter()
    found = measure_subspace(
        live.model,
        live.delta,
        list(earlier),
        list(live.scene.later),
        samples=live.study.samples,
        counts=_COUNTS,
        evaluate=share,
        seed=live.course.seed,
        tokenizer=live.tokenizer,
    )
    seconds = time.perf_counter() - started
    for name in ("by_share", "by_eigenvalue", "random"):
        for point in getattr(found, name):
            yield live.row(
                f"curve, {name.replace('_', ' ')}",
                n=point.directions,
                regained=point.measured,
                value=point.explained,
                norm_share=point.norm_share,
                seconds=seconds,
            )
    yield live.row(
        "spectrum", n=live.study.samples, value=found.restore.effective_rank, predicted=found.directions_for(0.9)
    )
    yield live.row("overlap", n=live.study.samples, value=found.overlap, predicted=found.overlap_by_chance)


MEASURES = {"curve": curve}
