"""The picture: how close to the machine's ceilings each operator comes, in bytes moved or in operations done."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.report.results import Record, Results

SMALL = 1 << 26
"""Cases that move fewer bytes are left out of those by bytes: they measure the cache."""

_OURS = "#1f5fbf"
_MARKS = {"torch": ("o", "#d1495b"), "torch.compile": ("^", "#edae49")}
_TORCH = ("torch", "torch.func.vmap")
_KINDS = {"read": "a read", "copy": "a copy, or a pass in place"}
_ROOFLINE_HEIGHT = 4.2


def draw(every: Sequence[Results], path: Path) -> None:
    """Write the picture, the same bytes for the same results; none where no operator was measured."""
    import matplotlib
    from matplotlib.figure import Figure

    panels = [
        (draw_panel, results, records, height)
        for results in every
        for draw_panel, records, height in (
            (_bytes_panel, _moving(results), 0.2 * len(_moving(results)) + 0.7),
            (_roofline_panel, _multiplying(results), _ROOFLINE_HEIGHT),
        )
        if records
    ]
    if not panels:
        return
    with matplotlib.rc_context({"svg.hashsalt": "rlforget", "font.size": 9}):
        heights = [height for *_, height in panels]
        figure = Figure(figsize=(9, sum(heights) + 0.6), layout="constrained")
        axes = figure.subplots(len(panels), 1, height_ratios=heights, squeeze=False)[:, 0]
        for axis, (draw_panel, results, records, _) in zip(axes, panels, strict=True):
            draw_panel(axis, results, records)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else {"Software": None})


def _bytes_panel(axis: Any, results: Results, records: list[Record]) -> None:
    """A line a case: ours up to what a bare pass reaches, and the peers, in GB/s of the fewest bytes."""
    places = range(len(records))
    ours = [record.speed for record in records]
    ceilings = [record.speed / record.share for record in records]
    axis.hlines(places, ours, ceilings, color="#b8c4d6", linewidth=1)
    axis.plot(ceilings, places, "|", color="black", markersize=11, label="ceiling: a bare pass over memory")
    axis.plot(ours, places, "D", color=_OURS, markersize=6, label="ours")
    for peer, (marker, color) in _MARKS.items():
        timed = [(place, record) for place, record in enumerate(records) if peer in record.seconds]
        speeds = [record.raw["moved"] / record.seconds[peer] / 1e9 for _, record in timed]
        if timed:
            axis.plot(speeds, [place for place, _ in timed], marker, color=color, markersize=5, label=peer)
    axis.set_yticks(places, [f"{record.operator}  {record.case}" for record in records])
    axis.invert_yaxis()
    axis.set_xscale("log")
    axis.set_xlabel("GB/s of the fewest bytes that the task moves")
    axis.set_title(results.name, fontsize=10)
    axis.set_axisbelow(True)
    axis.grid(axis="x", which="both", alpha=0.3)


def _roofline_panel(axis: Any, results: Results, records: list[Record]) -> None:
    """A point a case at its operations a byte, a colour an operator, under what memory and multiplying allow."""
    intensities = [_intensity(record) for record in records]
    low, high = min(intensities) / 2, 2 * max(intensities)
    peak = results.float_speed / 1e9
    for (kind, bandwidth), style in zip(_bandwidths(results).items(), ("-", "--"), strict=False):
        knee = peak / bandwidth
        ends = [low, knee, high] if low < knee < high else [low, high]
        roof = [min(end * bandwidth, peak or end * bandwidth) for end in ends]
        axis.plot(ends, roof, style, color="black", linewidth=1.2, label=f"{kind}: {bandwidth:.0f} GB/s")
    if peak:
        axis.axhline(peak, color="black", linewidth=0.6)
        axis.annotate(f"float32: {peak:.0f} GFLOP/s", (low, peak), xytext=(3, 3), textcoords="offset points")
    for color, operator in enumerate(dict.fromkeys(record.operator for record in records)):
        found = [record for record in records if record.operator == operator]
        places = [_intensity(record) for record in found]
        axis.plot(places, [record.float_rate for record in found], "D", color=f"C{color}", markersize=6, label=operator)
        peers = [(record, peer) for record in found for peer in _TORCH if peer in record.seconds]
        rates = [record.flops / record.seconds[peer] / 1e9 for record, peer in peers]
        hollow = {"markerfacecolor": "none", "markeredgecolor": f"C{color}", "markersize": 6}
        axis.plot([_intensity(record) for record, _ in peers], rates, "o", **hollow)
    axis.plot([], [], "o", markerfacecolor="none", markeredgecolor="grey", label="the same in torch")
    axis.legend(fontsize=8, loc="lower right")
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel("operations a byte: of dense products, over the fewest bytes that the task moves")
    axis.set_ylabel("GFLOP/s")
    axis.set_title(f"{results.name}: operators that multiply", fontsize=10)
    axis.set_axisbelow(True)
    axis.grid(which="both", alpha=0.3)


def _intensity(record: Record) -> float:
    return float(record.flops / record.raw["moved"])


def _bandwidths(results: Results) -> dict[str, float]:
    """GB/s of the fastest pass of each kind, of those whose bytes no cache holds."""
    found: dict[str, float] = {}
    for record in results.records:
        kind = "a copy" if results.device == "cuda" else _KINDS.get(record.raw["ceiling"])
        if kind and record.ceiling_moved >= SMALL:
            found[kind] = max(record.ceiling_speed, found.get(kind, 0.0))
    return dict(sorted(found.items()))


def _moving(results: Results) -> list[Record]:
    return [record for record in results.records if record.raw["moved"] >= SMALL and not record.flops]


def _multiplying(results: Results) -> list[Record]:
    return [record for record in results.records if record.flops]
