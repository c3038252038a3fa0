"""SFT against RL."""

from __future__ import annotations

import math

from rlforget.report import story
from rlforget.report.figure import COLOURS, GRID, INK, MUTED, Figure, Plot, figure, label, plain, title
from rlforget.report.over_seeds import ComparisonOverSeeds
from rlforget.report.spread import Spread


def comparison_plots(compared: ComparisonOverSeeds) -> list[Plot]:
    """SFT and RL: rewards, what they cost the other domains, KL to the start, and the weights they left."""
    rl, sft = compared.grpo, compared.sft
    forgotten = ({"": rl.forgotten}, {"": sft.forgotten})
    plots = [
        Plot(story.target_finding(compared), [_dots(compared, "mean sampled reward")]),
        Plot(story.forgotten_finding(compared), [_bars(*forgotten, "reward lost, mean of the other domains", ".2f")]),
    ]
    if rl.kl_to_start:
        plots.append(
            Plot(story.kl_finding(compared), [_bars(rl.kl_to_start, sft.kl_to_start, "KL(start ‖ fine-tune)", ".2f")])
        )
    if rl.sparsity:
        plots.append(
            Plot(story.sparsity_finding(compared), [_bars(rl.sparsity, sft.sparsity, "weights unchanged", ".1%")])
        )
    return plots


def _dots(compared: ComparisonOverSeeds, axis: str) -> Figure:
    """Rewards of the start and both fine-tunes, domain by domain."""
    names = list(compared.start)
    rows = [("start", MUTED, "line-ew-open", compared.start)]
    rows += [
        ("RL (GRPO)", COLOURS[0], "circle", compared.grpo.rewards),
        ("SFT", COLOURS[1], "square", compared.sft.rewards),
    ]
    traces = [
        {
            "x": list(range(len(names))),
            "y": plain(spreads.get(name, Spread(())).mean for name in names),
            "name": method,
            "mode": "markers",
            "marker": {"color": colour, "symbol": symbol, "size": 14, "line": {"width": 3 if method == "start" else 0}},
            "customdata": [spreads.get(name, Spread(())).text() for name in names],
            "text": [label(name) for name in names],
            "hovertemplate": "%{fullData.name} on %{text}: %{customdata}<extra></extra>",
        }
        for method, colour, symbol, spreads in rows
    ]
    reward = {"title": title(axis), "range": [-0.03, 1.05]}
    return figure(traces, xaxis=_names_axis(names), yaxis=reward)


def _bars(rl: dict[str, Spread], sft: dict[str, Spread], axis: str, form: str) -> Figure:
    """Bars of both fine-tunes side by side; the whiskers reach from the lowest to the highest seed."""
    names = list(rl)
    traces = []
    for method, colour, spreads in (("RL (GRPO)", COLOURS[0], rl), ("SFT", COLOURS[1], sft)):
        shown = [spreads.get(name, Spread(())) for name in names]
        traces.append(
            {
                "type": "bar",
                "x": list(range(len(names))),
                "y": plain(spread.mean for spread in shown),
                "name": method,
                "marker": {"color": colour},
                **(_whiskers(shown) if any(len(spread.known) > 1 for spread in shown) else _values(form)),
                "hovertemplate": f"{method}: %{{y:{form}}}<extra></extra>",
            }
        )
    value = {"title": title(axis), "tickformat": form, "zeroline": True, "zerolinecolor": GRID}
    return figure(
        traces, xaxis=_names_axis(names), yaxis=value, barmode="group", bargap=0.35 if len(names) > 1 else 0.7
    )


def _values(form: str) -> Figure:
    return {"texttemplate": f"%{{y:{form}}}", "textposition": "outside", "cliponaxis": False}


def _whiskers(shown: list[Spread]) -> Figure:
    error = {
        "type": "data",
        "symmetric": False,
        "array": plain(max(spread.known, default=math.nan) - spread.mean for spread in shown),
        "arrayminus": plain(spread.mean - min(spread.known, default=math.nan) for spread in shown),
        "color": INK,
        "thickness": 1.5,
    }
    return {"error_y": error}


def _names_axis(names: list[str]) -> Figure:
    ticks = [label(name) for name in names]
    return {
        "tickvals": list(range(len(names))),
        "ticktext": ticks,
        "range": [-0.6, len(names) - 0.4],
        "showgrid": False,
    }
