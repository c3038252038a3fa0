"""The picture of a search: no name covers another or a mark, wherever the trials lie."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from rlforget.recovery.candidates import Candidate
from rlforget.recovery.judging import Share
from rlforget.recovery.search import Trial
from rlforget.report.drawing import _STYLE
from rlforget.report.front import _draw

SHARES = st.floats(0.0, 1.0).map(lambda share: round(share, 2))


def found(points: list[tuple[float, float]]) -> Any:
    trials = [
        Trial(Candidate("fisher", budget), Share(x, 0.1), Share(y, 0.01), {}, 1, 0.1)
        for budget, (x, y) in zip((0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08), points, strict=False)
    ]
    front = {"front": tuple(trials), "chosen": trials[0]}
    return SimpleNamespace(trials=tuple(trials), restore=("math",), protect=("qa",), **front)


@settings(max_examples=12, deadline=None)
@given(st.lists(st.tuples(SHARES, SHARES), min_size=1, max_size=8))
def test_no_name_covers_another(points: list[tuple[float, float]]) -> None:
    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    with rc_context(_STYLE):
        axes = figure.subplots()
        _draw(axes, found(points))
        figure.draw_without_rendering()
    names = [text for text in axes.texts if isinstance(text, Annotation)]
    assert names[0].get_text() == "fisher, 1%"  # the one that was taken
    boxes = [name.get_window_extent() for name in names]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    frame = axes.get_window_extent()
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 for box in boxes)


def test_names_far_from_one_another_are_all_there() -> None:
    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    with rc_context(_STYLE):
        axes = figure.subplots()
        _draw(axes, found([(0.1, 0.1), (0.5, 0.9), (0.9, 0.4)]))
    assert [text.get_text() for text in axes.texts] == ["fisher, 1%", "fisher, 2%", "fisher, 3%"]
