"""The picture of the README: skills fall along the sequence, and rollbacks bring them back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlforget.errors import ReportError
from rlforget.report.drawing import COLOURS, CONTROL, GRID, INK, MARKERS, MUTED, check_picture, plain, save_drawing
from rlforget.report.families import Family
from rlforget.report.over_seeds import OverSeeds, RepairOverSeeds, over_seeds
from rlforget.report.results import parse_results
from rlforget.report.spread import Spread
from rlforget.report.wording import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SIZE = (9.0, 4.09)  # inches, 2.2 to 1
_FAMILY_COLOURS = {
    Family.SUBSPACE: COLOURS[0],
    Family.SCORE: COLOURS[1],
    Family.TRAINING: COLOURS[2],
    Family.CONTROL: CONTROL,
}
_MOST_BARS = 9
_MOST_CONTROLS = 3


def save_picture(results: dict[str, Any], path: Path, *, force: bool = False) -> None:
    """Draw the README's picture, 2.2 to 1 on white: the rewards along the sequence, and what each repair does.

    Args:
        results: What `run_demo` returned, or `results.json` holds.
        path: The picture to write, `.svg` or `.png`.
        force: Replace what is there.

    Raises:
        ReportError: The results are damaged, of another format or version, or lack the rewards or the repairs.
        OutputError: `path` is no `.svg` or `.png`, exists already, or cannot be written.
        MissingExtraError: matplotlib is not installed.
    """
    check_picture(path, force=force)
    found = over_seeds(parse_results(results))
    if not found.domains or not found.repairs:
        lacking = "repairs" if found.domains else "rewards"
        raise ReportError("results", expected="rewards and repairs", found=f"no {lacking}", fix="Make the run again.")
    save_drawing(lambda figure: _draw(figure, found), _SIZE, path, force=force)


def _draw(figure: Figure, found: OverSeeds) -> None:
    from matplotlib.patches import Patch

    rewards, regained, kept = figure.subplots(1, 3, width_ratios=(1.5, 1, 1))
    _draw_rewards(rewards, found)
    shown = _shown(found)
    _draw_bars(regained, shown, [repair.regained for repair in shown], "2  Undo: loss regained")
    _draw_bars(kept, shown, [repair.kept for repair in shown], "3  Later gains kept")
    kept.set_yticklabels([])
    families = [family for family in Family if any(repair.family is family for repair in shown)]
    patches = [Patch(color=_FAMILY_COLOURS[family], label=family.value) for family in families]
    figure.legend(handles=patches, loc="outside lower right", ncols=4, frameon=False, fontsize=9, handlelength=0.9)


def _draw_rewards(axes: Axes, found: OverSeeds) -> None:
    """The means as lines, and a last step: the best rollback."""
    best = found.best(Family.SUBSPACE, Family.SCORE)
    names = [plain(stage.name) for stage in found.stages] + (["rollback"] if best else [])
    for position, domain in enumerate(found.domains):
        colour = COLOURS[position % len(COLOURS)]
        rewards = [stage.rewards.get(domain, Spread(())).mean for stage in found.stages]
        places = list(range(len(rewards)))
        style: dict[str, Any] = {"color": colour, "marker": MARKERS[position % len(MARKERS)], "markersize": 5}
        axes.plot(places, rewards, linewidth=2, label=plain(domain), **style)
        if best and domain in best.rewards:
            axes.plot([places[-1], len(places)], [rewards[-1], best.rewards[domain].mean], ":", linewidth=2, **style)
    if best:
        axes.axvspan(len(found.stages) - 0.5, len(found.stages) + 0.35, color="#eaf3fa", zorder=0)
    axes.set_xticks(range(len(names)), names)
    axes.set_ylim(0, 1.04)
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    axes.tick_params(length=0, labelsize=9)
    axes.set_ylabel("sampled reward")
    axes.set_title("1  Train one skill after another", loc="left", fontsize=11, fontweight="bold")
    axes.legend(frameon=False, loc="lower right", fontsize=9, handlelength=1.6)


def _draw_bars(axes: Axes, repairs: list[RepairOverSeeds], shares: list[Spread], title: str) -> None:
    """A bar a repair; dots are single seeds where there are several."""
    rows = range(len(repairs))
    means = [share.mean for share in shares]
    axes.barh(rows, means, color=[_FAMILY_COLOURS[repair.family] for repair in repairs], height=0.66)
    right = max(1.0, *(value for share in shares for value in share.known), 0.0)
    left = min(0.0, *(value for share in shares for value in share.known), 0.0)
    for row, share in zip(rows, shares, strict=True):
        if len(share.known) > 1:
            axes.plot(share.known, [row] * len(share.known), ".", color=INK, markersize=3, alpha=0.6)
        axes.text(right * 1.06, row, percent(share.mean), va="center", fontsize=9)
    axes.set_yticks(rows, [plain(repair.label) for repair in repairs], fontsize=9)
    axes.set_ylim(len(repairs) - 0.4, -0.6)
    axes.set_xlim(left - 0.02, right * 1.32)  # room for half a dot
    axes.set_xticks([0, 0.5, 1], ["0", "50%", "100%"])
    axes.axvline(1, color=MUTED, linewidth=0.8, linestyle=":")
    axes.tick_params(length=0)
    axes.spines["bottom"].set_visible(False)
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")


def _shown(found: OverSeeds) -> list[RepairOverSeeds]:
    """The best fraction of every rule, the best rule first; the strongest controls last."""
    best: dict[str, RepairOverSeeds] = {}
    for repair in found.repairs:
        if repair.rule not in best or repair.worth > best[repair.rule].worth:
            best[repair.rule] = repair
    ordered = sorted(best.values(), key=lambda repair: -repair.worth)
    controls = [repair for repair in ordered if repair.family is Family.CONTROL][:_MOST_CONTROLS]
    others = [repair for repair in ordered if repair.family is not Family.CONTROL]
    return others[: max(1, _MOST_BARS - len(controls))] + controls
