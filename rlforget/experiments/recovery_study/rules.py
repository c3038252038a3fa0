"""The training-free rules and their controls, each tried on the live model and undone to the bit."""

from __future__ import annotations

from collections.abc import Iterator

from rlforget.experiments.recovery_study.scene import Live, Row
from rlforget.interference import conflict

_FEW_BUDGETS = (0.02, 0.05)
SCORES = ("subspace", "fisher", "two_fisher", "magnitude", "random")
_CONTROLS = ("magnitude", "random")


def dense(live: Live) -> Iterator[Row]:
    """Subtract the dense correction, in one pass and in two; beside it a random subspace and the same norm along δ."""
    samples = live.study.samples
    for passes in (1, 2):
        found, seconds = live.subspace(passes=passes)
        yield live.tried("dense subspace", found, n=samples, rows="sequence", passes=passes, seconds=seconds)
    found, _ = live.subspace(passes=1)
    control, seconds = live.subspace(passes=1, random=True, protect=())
    yield live.tried("random subspace", control, n=samples, passes=1, seconds=seconds)
    share = found.passes[0].norm_share
    yield from along(live, share)


def along(live: Live, share: float) -> Iterator[Row]:
    """Go back along δ by the norm that the correction has: the control that has no direction of its own."""
    if not 0.0 < share <= 1.0:
        return
    everything = {name: tensor.indices for name, tensor in live.delta.items() if tensor.changed}
    yield live.tried("along δ", everything, strength=share)


def coordinates(live: Live) -> Iterator[Row]:
    """Put the old bits back at the coordinates that score highest, for every score and budget."""
    earlier = [live.fisher(name) for name in live.scene.earlier]
    later = [live.fisher(name) for name in live.scene.later]
    subspace, _ = live.subspace(passes=1)
    seed, samples = live.course.seed, live.study.samples
    for score in SCORES:
        scored = conflict(live.delta, earlier=earlier, later=later, score=score, subspace=subspace, seed=seed)
        for budget in live.study.budgets:
            if score in ("subspace", "fisher") or budget in _FEW_BUDGETS:
                n = None if score in _CONTROLS else samples
                yield live.tried(score, scored.top(fraction=budget), budget=budget, n=n)


MEASURES = {"dense": dense, "coordinates": coordinates}
