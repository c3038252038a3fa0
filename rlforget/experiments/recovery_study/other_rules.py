"""The rules that are tried in fewer scenes: by diagonal and Kronecker curvature, and the fewest coordinates."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from rlforget.experiments.recovery_study.scene import Live, Row
from rlforget.interference import fewest, kronecker_rule, soft_rule

_SOFT = (0.3, 3.0)  # λ
_KRONECKER = 0.3
_FEWEST = (0.001, 0.005)
_FEWEST_SAMPLES = 128  # every one of its steps reads all of their gradients


def others(live: Live) -> Iterator[Row]:
    """Try the soft rule, the Kronecker rule and the fewest coordinates."""
    n = live.study.samples
    sides = {
        "earlier": [live.fisher(name) for name in live.scene.earlier],
        "later": [live.fisher(name) for name in live.scene.later],
    }
    for lam in _SOFT:
        yield live.tried("soft", soft_rule(live.delta, **sides, lam=lam), n=n, lam=str(lam))
    given: dict[str, Any] = {
        "restore": list(live.scene.earlier),
        "protect": list(live.scene.later),
        "samples": n,
        "seed": live.course.seed,
        "tokenizer": live.tokenizer,
    }
    rule, seconds = _timed(lambda: kronecker_rule(live.model, live.delta, lam=_KRONECKER, **given))
    yield live.tried("kronecker", rule, n=n, lam=str(_KRONECKER), seconds=seconds)
    for budget in _FEWEST:
        few = {**given, "samples": min(n, _FEWEST_SAMPLES)}
        found, seconds = _timed(lambda: fewest(live.model, live.delta, fraction=budget, **few))  # noqa: B023
        yield live.tried("fewest", found, n=few["samples"], budget=budget, rows="sequence", seconds=seconds)


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    started = time.perf_counter()
    return work(), time.perf_counter() - started


MEASURES = {"others": others}
