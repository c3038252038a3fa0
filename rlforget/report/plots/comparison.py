"""SFT against RL."""

from __future__ import annotations

from rlforget.report import story
from rlforget.report.figure import COLOURS, MUTED, Figure, Plot, figure, label, plain, title
from rlforget.report.over_seeds import ComparisonOverSeeds, OverSeeds
from rlforget.report.plots.bars import Series, bars, names_axis
from rlforget.report.spread import Spread
from rlforget.report.wording import listing


def comparison_plots(found: OverSeeds, compared: ComparisonOverSeeds) -> list[Plot]:
    """SFT and RL: rewards, what they cost the other domains, KL to the start, and the weights they left."""
    rl, sft = compared.grpo, compared.sft
    names = list(compared.start)
    rewards = _dots(compared, "mean sampled reward")
    plots = [
        Plot(story.target_finding(compared), [rewards], f"Above the grey stroke is better. {story.sampled(found)}"),
        _beside(
            story.forgotten_finding(compared),
            {"": rl.forgotten},
            {"": sft.forgotten},
            ("reward lost, mean of the other domains", ".2f"),
            f"Lower is better: what {listing([name for name in names if name != compared.target])} lost. "
            + story.sampled(found),
        ),
    ]
    if rl.kl_to_start:
        axis = ("KL(start ‖ fine-tune), nats a completion", ".2f")
        reading = f"Lower is nearer to the start, on its own samples. {story.completions(found)}"
        plots.append(_beside(story.kl_finding(compared), rl.kl_to_start, sft.kl_to_start, axis, reading))
    if rl.sparsity:
        axis = ("share of weights with equal bits", ".1%")
        reading = f"Higher means a sparser update; it depends on the dtype compared in. {story.counted(found)}"
        plots.append(_beside(story.sparsity_finding(compared), rl.sparsity, sft.sparsity, axis, reading))
    return plots


def _beside(finding: str, rl: dict[str, Spread], sft: dict[str, Spread], axis: tuple[str, str], reading: str) -> Plot:
    """Bars of both, side by side; the axis by its title and the form of its values."""
    series = [
        Series("RL (GRPO)", COLOURS[0], list(rl.values())),
        Series("SFT", COLOURS[1], [sft.get(name, Spread(())) for name in rl]),
    ]
    return Plot(finding, [bars(list(rl), series, *axis)], reading)


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
    return figure(traces, xaxis=names_axis(names), yaxis=reward)
