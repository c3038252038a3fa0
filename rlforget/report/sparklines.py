"""Every domain's reward over the sequence as a small line, drawn without a script."""

from __future__ import annotations

import math

from rlforget.report.figure import COLOURS, turn
from rlforget.report.markup import Html, tag
from rlforget.report.over_seeds import OverSeeds
from rlforget.report.wording import number

_WIDTH, _HEIGHT, _EDGE = 132, 36, 5  # of the picture, and free at its edges, in CSS pixels


def sparklines(found: OverSeeds) -> Html:
    """The domains, each with its line and its first and last reward; nothing where none was measured."""
    cards = []
    for position, domain in enumerate(found.domains):
        means = [stage.rewards[domain].mean if domain in stage.rewards else math.nan for stage in found.stages]
        known = [(place, mean) for place, mean in enumerate(means) if math.isfinite(mean)]
        if known:
            own = [place for place, name in found.own if name == domain]
            cards.append(_card(domain, known, own, len(means), turn(COLOURS, position)))
    return tag("dl", *cards, class_="sparks") if cards else Html()


def _card(domain: str, known: list[tuple[int, float]], own: list[int], count: int, colour: str) -> Html:
    points = {place: (_across(place, count), _up(mean)) for place, mean in known}
    first, last = known[0][1], known[-1][1]
    highest = max(mean for _, mean in known)
    marks = [
        tag("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r="4" if place in own else "2.5", fill=colour)
        for place, (x, y) in points.items()
        if place in own or place == known[-1][0]
    ]
    line = tag(
        "polyline",
        points=" ".join(f"{x:.1f},{y:.1f}" for x, y in points.values()),
        fill="none",
        stroke=colour,
        stroke_width="2",
        stroke_linejoin="round",
    )
    size = {"width": f"{_WIDTH}", "height": f"{_HEIGHT}", "viewBox": f"0 0 {_WIDTH} {_HEIGHT}"}
    picture = tag("svg", line, *marks, aria_hidden="true", **size)
    rewards = tag("dd", f"{number(first)} → {number(last)}")
    return tag(
        "div",
        tag("dt", domain),
        tag("dd", picture),
        rewards,
        tag("dd", f"highest {number(highest)}", class_="muted"),
    )


def _across(place: int, count: int) -> float:
    return _EDGE + (_WIDTH - 2 * _EDGE) * (place / (count - 1) if count > 1 else 0.5)


def _up(mean: float) -> float:
    """The height of a reward; of one outside of [0, 1], that of the nearer end."""
    return _HEIGHT - _EDGE - (_HEIGHT - 2 * _EDGE) * min(1.0, max(0.0, mean))
