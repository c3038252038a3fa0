"""The picture: how close to the machine's ceiling each operator comes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.report.results import Record, Results

SMALL = 1 << 26
"""Cases that move fewer bytes are left out: they measure the cache."""


_OURS = "#1f5fbf"
_MARKS = {"torch": ("o", "#d1495b"), "torch.compile": ("^", "#edae49")}


def draw(every: Sequence[Results], path: Path) -> None:
    """Write the picture, the same bytes for the same results."""
    import matplotlib
    from matplotlib.figure import Figure

    every = [results for results in every if results.records]
    with matplotlib.rc_context({"svg.hashsalt": "rlforget", "font.size": 9}):
        heights = [0.2 * len(_shown(results)) + 0.7 for results in every]
        figure = Figure(figsize=(9, sum(heights) + 0.6), layout="constrained")
        axes = figure.subplots(len(every), 1, height_ratios=heights, squeeze=False)[:, 0]
        for axis, results in zip(axes, every, strict=True):
            _panel(axis, results)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else {"Software": None})


def _panel(axis: Any, results: Results) -> None:
    """A line a case: ours up to what a bare pass reaches, and the peers, in GB/s of the fewest bytes."""
    records = _shown(results)
    places = range(len(records))
    ours, ceilings = ([getattr(record, name) for record in records] for name in ("speed", "ceiling_speed"))
    axis.hlines(places, ours, ceilings, color="#b8c4d6", linewidth=1)
    axis.plot(ceilings, places, "|", color="black", markersize=11, label="ceiling: a bare pass over as many bytes")
    axis.plot(ours, places, "D", color=_OURS, markersize=6, label="ours")
    for peer, (marker, color) in _MARKS.items():
        timed = [(place, record) for place, record in enumerate(records) if peer in record.seconds]
        speeds = [record.raw["moved"] / record.seconds[peer] / 1e9 for _, record in timed]
        axis.plot(speeds, [place for place, _ in timed], marker, color=color, markersize=5, label=peer)
    axis.set_yticks(places, [f"{record.operator}  {record.case}" for record in records])
    axis.invert_yaxis()
    axis.set_xscale("log")
    axis.set_xlabel("GB/s of the fewest bytes that the task moves")
    axis.set_title(results.name, fontsize=10)
    axis.set_axisbelow(True)
    axis.grid(axis="x", which="both", alpha=0.3)


def _shown(results: Results) -> list[Record]:
    return [record for record in results.records if record.raw["moved"] >= SMALL]
