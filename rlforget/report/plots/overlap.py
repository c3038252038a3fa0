"""The overlap of the stages beside chance."""

from __future__ import annotations

from rlforget.report import story
from rlforget.report.figure import COLOURS, MUTED, Figure, Plot, figure, label, plain, span, title
from rlforget.report.over_seeds import OverSeeds, SharedOverSeeds

OVERLAP_CHOICES = ("changed coordinates", "top-10% edited neurons")
"""What a reader may switch the plot between."""


def overlap_plot(found: OverSeeds) -> Plot:
    """The overlap of every two stages beside chance; the views are `OVERLAP_CHOICES`."""
    names = [label(f"{pair.first}, {pair.second}") for pair in found.overlaps]
    views = [
        _beside_chance(names, [getattr(pair, key) for pair in found.overlaps], len(found.seeds))
        for key in ("coordinates", "neurons")
    ]
    reading = f"To the right of the stroke is more than chance. {story.counted(found)}"
    return Plot(story.overlap_finding(found), views, reading, height=130 + 44 * len(names))


def _beside_chance(names: list[str], shares: list[SharedOverSeeds], seeds: int) -> Figure:
    rows = list(range(len(names)))[::-1]  # plotly counts rows from below
    joined = [edge for share, row in zip(shares, rows, strict=True) for edge in _edges(share, row)]
    traces: list[Figure] = [
        {
            "x": [x for x, _ in joined],
            "y": [y for _, y in joined],
            "mode": "lines",
            "line": {"color": MUTED, "width": 2},
            "hoverinfo": "skip",
            "showlegend": False,
        }
    ]
    if seeds > 1:
        values = [(value, row) for share, row in zip(shares, rows, strict=True) for value in share.jaccard.values]
        traces.append(
            {
                "x": plain(value for value, _ in values),
                "y": [row for _, row in values],
                "mode": "markers",
                "marker": {"color": COLOURS[0], "size": 5},
                "opacity": 0.5,
                "hoverinfo": "skip",
                "showlegend": False,
            }
        )
    for name, key, symbol, colour in (
        ("by chance", "chance", "line-ns-open", MUTED),
        ("measured", "jaccard", "circle", COLOURS[0]),
    ):
        spreads = [getattr(share, key) for share in shares]
        traces.append(
            {
                "x": plain(spread.mean for spread in spreads),
                "y": rows,
                "name": name,
                "mode": "markers",
                "marker": {
                    "color": colour,
                    "symbol": symbol,
                    "size": 13,
                    "line": {"width": 3 if key == "chance" else 0},
                },
                "text": names,
                "customdata": [spread.text() for spread in spreads],
                "hovertemplate": "%{text}, %{fullData.name}: %{customdata}<extra></extra>",
            }
        )
    ends = span([v for share in shares for s in (share.jaccard, share.chance) for v in s.known], start=0, end=0.1)
    pairs = {"tickvals": rows, "ticktext": names, "range": [-0.6, len(rows) - 0.4]}
    return figure(traces, xaxis={"title": title("Jaccard index"), "range": ends}, yaxis=pairs)


def _edges(share: SharedOverSeeds, row: int) -> list[tuple[float | None, int]]:
    """A stroke from chance to what was measured; the None ends it."""
    chance, measured = plain((share.chance.mean, share.jaccard.mean))
    return [(chance, row), (measured, row), (None, row)]
