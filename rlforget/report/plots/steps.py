"""How much a stage leaves as it was, and how far the rest moves."""

from __future__ import annotations

from rlforget.report import story
from rlforget.report.figure import COLOURS, DASHES, SYMBOLS, Figure, Plot, figure, label, plain, title, turn
from rlforget.report.over_seeds import SPARSITIES, DeltaOverSeeds, OverSeeds
from rlforget.report.plots.bars import Series, bars
from rlforget.report.wording import tenths

MEASURES = dict(zip(SPARSITIES, ("same bits", "within 1e-5", "within 0.1%"), strict=True))
"""What the three measures of an unchanged coordinate are called."""

_RAISED = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def step_plots(found: OverSeeds) -> list[Plot]:
    """The share of coordinates that each stage left, by three measures; and how far the others moved."""
    stages = [(stage.name, stage.delta) for stage in found.stages if stage.delta]
    if not stages:
        return []
    series = [
        Series(name, turn(COLOURS, position), [delta.sparsity[key] for _, delta in stages])
        for position, (key, name) in enumerate(MEASURES.items())
    ]
    left = bars([name for name, _ in stages], series, "share of coordinates left", ".1%")
    plots = [
        Plot(
            story.sparsity_of_stages(found),
            [left],
            "The share depends on the storage dtype and on what counts as unchanged: equal bits, a difference of at "
            f"most 1e-5, or of at most a thousandth of the value. {story.counted(found)}",
        )
    ]
    stepped = [(name, delta) for name, delta in stages if delta.steps]
    if stepped:
        reading = "One step is to the neighbouring value that the storage dtype can hold; each bin is twice as wide. "
        plots.append(Plot(story.steps_finding(found), [_histogram(stepped)], reading + story.counted(found)))
    return plots


def bin_name(place: int) -> str:
    """Name a bin of steps by its ends: `0`, `1`, `2–3`, `4–7`, …, `2¹⁹–2²⁰`."""
    low, high = (0, 0) if place == 0 else (2 ** (place - 1), 2**place - 1)
    if low == high:
        return f"{low}"
    return f"{low}–{high}" if high < 1000 else f"{bin_start(place)}–{bin_start(place + 1)}"


def bin_start(place: int) -> str:
    """Write the lower end of a bin: `512`, and beyond that as a power of two."""
    low = 0 if place == 0 else 2 ** (place - 1)
    return f"{low}" if low < 1000 else f"2{str(place - 1).translate(_RAISED)}"


def _histogram(stages: list[tuple[str, DeltaOverSeeds]]) -> Figure:
    bins = list(range(max(len(delta.steps) for _, delta in stages)))
    names = [bin_name(place) for place in bins]
    traces: list[Figure] = [
        {
            "x": bins[: len(delta.steps)],
            "y": plain(share.mean for share in delta.steps),
            "name": label(stage),
            "mode": "lines+markers",
            "line": {"color": turn(COLOURS, position), "dash": turn(DASHES, position // len(COLOURS)), "shape": "hvh"},
            "marker": {"symbol": turn(SYMBOLS, position), "size": 7},
            "customdata": [[name, share.text(tenths)] for name, share in zip(names, delta.steps, strict=False)],
            "hovertemplate": "%{fullData.name}, %{customdata[0]} steps: %{customdata[1]}<extra></extra>",
        }
        for position, (stage, delta) in enumerate(stages)
    ]
    every = max(1, len(bins) // 8)
    steps = {
        "title": title("representable values moved, at least"),
        "tickvals": bins[::every],
        "ticktext": [bin_start(place) for place in bins[::every]],
    }
    share = {"title": title("share of the changed coordinates"), "tickformat": ".0%", "rangemode": "tozero"}
    return figure(traces, xaxis=steps, yaxis=share)
