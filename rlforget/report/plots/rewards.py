"""The rewards along the sequence."""

from __future__ import annotations

import math

from rlforget.report import story
from rlforget.report.figure import COLOURS, DASHES, SYMBOLS, Figure, Plot, figure, label, plain, title, turn
from rlforget.report.over_seeds import OverSeeds
from rlforget.report.spread import Spread


def rewards_plot(found: OverSeeds) -> Plot:
    """Every domain's reward along the sequence: the means as lines, the seeds as thin ones."""
    places = list(range(len(found.stages)))
    names = [label(stage.name) for stage in found.stages]
    traces = []
    for position, domain in enumerate(found.domains):
        spreads = [stage.rewards.get(domain, Spread(())) for stage in found.stages]
        line = {"color": turn(COLOURS, position), "dash": turn(DASHES, position // len(COLOURS))}
        traces += [{**thin, "x": places, "line": {**line, "width": 1}} for thin in _seed_lines(found, spreads)]
        traces.append(
            {
                "x": places,
                "y": plain(spread.mean for spread in spreads),
                "name": label(domain),
                "mode": "lines+markers",
                "line": {**line, "width": 3},
                "marker": {
                    "opacity": 1,  # plotly would make marks of several sizes see-through
                    "symbol": turn(SYMBOLS, position),
                    "size": [14 if (place, domain) in found.own else 8 for place in places],
                },
                **_whiskers(found, domain),
                "customdata": [spread.text() for spread in spreads],
                "text": names,
                "hovertemplate": "%{fullData.name} after %{text}: %{customdata}<extra></extra>",
            }
        )
    after = {"tickvals": places, "ticktext": names, "range": [-0.25, len(places) - 0.75], "title": title("after stage")}
    reward = {"title": title("mean sampled reward"), "range": [-0.03, 1.05]}
    reading = f"A line a domain, its own stage marked large; a fall after it is forgetting. {story.sampled(found)}"
    if any("error_y" in trace for trace in traces):
        reading += " Whiskers: one standard error over prompts."
    return Plot(story.rewards_finding(found), [figure(traces, xaxis=after, yaxis=reward)], reading)


def _whiskers(found: OverSeeds, domain: str) -> Figure:
    """The standard error over prompts, of one seed; over several the seeds themselves are drawn."""
    errors = [stage.stderr.get(domain, Spread(())).mean for stage in found.stages]
    if len(found.seeds) > 1 or not any(map(math.isfinite, errors)):
        return {}
    return {"error_y": {"type": "data", "array": plain(errors), "thickness": 1.5, "width": 4}}


def _seed_lines(found: OverSeeds, spreads: list[Spread]) -> list[Figure]:
    seeds = range(len(found.seeds)) if len(found.seeds) > 1 else ()
    return [
        {
            "y": plain(spread.values[seed] if spread.values else math.nan for spread in spreads),
            "mode": "lines",
            "opacity": 0.4,
            "hoverinfo": "skip",
            "showlegend": False,
        }
        for seed in seeds
    ]
