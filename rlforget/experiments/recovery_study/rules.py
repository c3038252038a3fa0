"""The training-free rules and their controls, each tried on the live model and undone to the bit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

from rlforget import delta as deltas
from rlforget.experiments.measure import regained
from rlforget.experiments.recovery_study.scene import Live, Row
from rlforget.interference import conflict
from rlforget.interference.empirical_fisher import Where
from rlforget.recovery import rollback

SCORES = ("subspace", "fisher", "two_fisher", "taylor", "opposed", "magnitude", "random")
_UNMEASURED = ("opposed", "magnitude", "random")


def dense(live: Live) -> Iterator[Row]:
    """Subtract the dense correction, in one pass and more; beside it a random subspace and the same norm along δ."""
    samples = live.study.samples
    yield from by_passes(live, "dense subspace", 3 if live.scene.part == "deep" else 2, n=samples, rows="sequence")
    control, seconds = live.subspace(random=True, protect=())
    yield live.tried("random subspace", control, n=samples, passes=1, seconds=seconds)
    found, _ = live.subspace()
    yield from along(live, found.passes[0].norm_share)


def by_passes(live: Live, rule: str, passes: int, *, n: int, rows: str, **options: Any) -> Iterator[Row]:
    """Roll back in passes, a row after each: the next is solved for what the ones before it left of δ.

    Each is a rollback of its own, so that all passes cost no more than the last one's subspace alone would.
    """
    given = {**options}
    if n != live.study.samples:
        given["samples"] = n
    if rows != "sequence":
        given["rows"] = rows
    left, taken = live.delta, 0.0
    with ExitStack() as done:
        for number in range(1, passes + 1):
            found, seconds = live.subspace(**given) if number == 1 else live.subspace_of(left, **given)
            done.enter_context(rollback(live.model, left, found, seed=live.course.seed))
            left, taken = deltas.diff(live.before, live.model), taken + seconds
            fields = {"n": n, "rows": rows, "passes": number, "seconds": taken, **_settings(options)}
            yield live.judged(rule, norm_share=live.moved(), **fields)


def _settings(options: dict[str, Any]) -> dict[str, Any]:
    return {name: str(options[name]) for name in ("mu", "lam") if name in options}


def along(live: Live, share: float) -> Iterator[Row]:
    """Go back along δ by the norm that the correction has: the control that has no direction of its own."""
    if not 0.0 < share <= 1.0:
        return
    everything = {name: tensor.indices for name, tensor in live.delta.items() if tensor.changed}
    yield live.tried("along δ", everything, strength=share)


def few_prompts(live: Live) -> Iterator[Row]:
    """Roll back with few prompts: one row a completion, or a likely token at each place."""
    few = min(live.study.few, live.study.samples)
    yield from by_passes(live, "few prompts", 1, n=few, rows="sequence")
    yield from by_passes(live, "few prompts", 2, n=few, rows="logit", mu=1e-3, lam=10.0)


def coordinates(live: Live) -> Iterator[Row]:
    """Put the old bits back at the coordinates that score highest, for every score and budget."""
    earlier, later = live.scene.earlier, live.scene.later
    subspace, _ = live.subspace()
    for score in SCORES:
        where: Where = "earlier" if score == "taylor" else "midpoint"  # its formula is of the earlier point
        scored = conflict(
            live.delta,
            earlier=[live.fisher(name, where=where) for name in earlier],
            later=[live.fisher(name) for name in later],
            score=score,
            own=live.own,
            subspace=subspace,
            seed=live.course.seed,
        )
        for budget in live.study.budgets:
            n = None if score in _UNMEASURED else live.study.samples
            yield live.tried(score, scored.top(fraction=budget), budget=budget, n=n)


def selectivity(live: Live) -> Iterator[Row]:
    """Restore one of several older domains alone, and see how far another one moves: `value` is the other's share.

    Once with nothing asked of the others, and once with them among the protected.
    """
    older, later = live.scene.earlier, live.scene.later
    lost = [name for name in older if live.then[name] - live.now[name] >= live.study.least_loss]
    for one in lost:
        others = tuple(name for name in older if name != one)
        for rule, protect in (("one alone", later), ("one alone, others protected", (*later, *others))):
            found, _ = live.subspace(restore=(one,), protect=protect)
            row = live.tried(rule, found, n=live.study.samples, passes=1)
            after = json.loads(row["rewards"])
            for other in others:
                if other in lost:
                    shares = {name: regained(live.then, live.now, after, [name]) for name in (one, other)}
                    yield {**row, "earlier": f"{one} ({other})", "regained": shares[one], "value": shares[other]}


def peaks(live: Live) -> Iterator[Row]:
    """How far every domain is from its best reward along the sequence: at the end, and after one rollback.

    Every older domain comes back from its own stage, and the last one is protected. `value` is the largest gap.
    """
    line = live.line(live.scene.now)
    peak = {name: max(live.rewards_at(stage.name)[name] for stage in line) for name in live.now}
    yield _gaps(live.row("peaks, now"), peak, live.now)
    stages = {stage.record["config"]["domain"]: stage.name for stage in line}
    *older, last = stages
    since = [live.since(stages[name]) for name in older]
    for passes in (1, 2):
        found, seconds = live.subspace_of(since[0], restore=older, protect=[last], since=since, passes=passes)
        with rollback(live.model, since[0], found, seed=live.course.seed):
            fields = {"n": live.study.samples, "rows": "sequence", "passes": passes, "seconds": seconds}
            row = live.judged("peaks, rollback", **fields)
        yield _gaps(row, peak, json.loads(row["rewards"]))


def _gaps(row: Row, best: dict[str, float], rewards: dict[str, float]) -> Row:
    gaps = {name: round(best[name] - rewards[name], 4) for name in best}
    return {**row, "value": max(gaps.values()), "rewards": json.dumps(gaps)}


MEASURES = {"dense": dense, "few": few_prompts, "coordinates": coordinates}
OF_SEVERAL = {"selectivity": selectivity, "peaks": peaks}
"""For scenes of several older domains."""
