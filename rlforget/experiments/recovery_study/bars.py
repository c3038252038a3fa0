"""What the study is held against: each bar, and what was measured."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from rlforget.experiments.recovery_study import verdicts
from rlforget.experiments.recovery_study.reading import (
    Key,
    Mean,
    by,
    first_to,
    law_of_growth,
    mean_of,
    scene_of,
    select,
    shares,
    spearman,
)
from rlforget.experiments.recovery_study.scene import Row

Rows = list[Row]
MAIN = ("pairs", "sequence")
NEAR_ZERO = 0.1
_SCORES = ("subspace", "fisher", "two_fisher")
_DEEP = 0.35  # a loss from which coordinates are reported apart


@dataclass(frozen=True)
class Bar:
    """One line of the table.

    Attributes:
        what: What is held against it, with `{samples}` and `{few}` for the study's settings.
        least: The bar.
        measured: Writes what was measured.
        verdict: Says whether that reaches the bar.
    """

    what: str
    least: str
    measured: Callable[[Rows], str]
    verdict: Callable[[Rows], str]


def _dense(rows: Rows, passes: int, **wanted: object) -> Rows:
    return select(rows, rule="dense subspace", passes=passes, **{"part": MAIN, **wanted})


def _few(rows: Rows) -> Rows:
    return select(rows, rule="few prompts", rows="logit", passes=2, part=MAIN)


def _old_bits(rows: Rows) -> str:
    found = select(rows, rule="subspace", budget=0.02, part=MAIN)
    shallow = [row for row in found if row["then"] - row["now"] < _DEEP]
    deeper = [row for row in found if row["then"] - row["now"] >= _DEEP]
    return f"{shares(shallow)}; deeper: {shares(deeper)}"


def _near_zero(rows: Rows) -> str:
    fallen = [row for row in rows if row["now"] is not None and row["now"] < NEAR_ZERO and row["then"] > 0.5]
    dense, refreshed = select(fallen, rule="dense subspace", passes=2), select(fallen, rule="refresh")
    longest = max((row["steps"] for row in refreshed), default=0)
    last = select(refreshed, steps=longest)
    told = [shares(dense)]
    if thrice := select(fallen, rule="dense subspace", passes=3):
        told.append(f"three passes {shares(thrice)}")
    if last:
        tried = {scene_of(row) for row in last}
        same = shares([row for row in dense if scene_of(row) in tried])
        told.append(f"where a refresh of {longest} steps was tried: {same}, the refresh {shares(last)}")
    return "; ".join(told)


def _rounding(rows: Rows) -> str:
    parts = []
    known = [row for row in select(rows, rule="rounding, float32") if _known(row)]
    for dtype, same in by(known, lambda row: row["dtype"]).items():
        exact = {scene_of(row): row for row in same}
        told = []
        for way in ("stochastic", "nearest"):
            others = [row for row in select(rows, rule=f"rounding, {way}", dtype=dtype) if _known(row)]
            gaps = [
                max(abs(row[share] - exact[scene_of(row)][share]) for share in ("regained", "kept")) for row in others
            ]
            told.append(f"{way} {Mean(tuple(gaps))}")
        unit = mean_of(same, "value").mean
        told_all = ", ".join(told)
        parts.append(f"{dtype} ({unit:.0%} of the changes one unit): {told_all} (n = {len(same)})")
    return "; ".join(parts) or "not measured"


def _known(row: Row) -> bool:
    return row["regained"] is not None and row["kept"] is not None


def _selectivity(rows: Rows) -> str:
    told = []
    for rule, said in (("one alone", "alone"), ("one alone, others protected", "with the other protected")):
        found = select(rows, rule=rule)
        moved, own = mean_of(found, "value"), mean_of(found, "regained")
        told.append(f"{said} {moved} of the other's loss, beside {own} of its own (n = {len(found)})")
    return "; ".join(told)


def best_coordinates(rows: Rows, most: float = 0.05) -> tuple[str, float] | None:
    """Return the score and budget of the coordinate rule with the best sum of shares; None where none was measured."""
    tried = by(
        [row for row in select(rows, rule=_SCORES, part=MAIN) if row["budget"] and row["budget"] <= most],
        lambda row: (row["rule"], row["budget"]),
    )
    worth = {key: mean_of(same, "regained").mean + mean_of(same, "kept").mean for key, same in tried.items()}
    return max(worth, key=lambda key: worth[key]) if worth else None


def _best_coordinates(rows: Rows) -> str:
    best = best_coordinates(rows)
    if best is None:
        return "not measured"
    rule, budget = best
    return f"`{rule}` {budget:.1%}: {shares(select(rows, rule=rule, budget=budget, part=MAIN))}"


def _best_verdict(rows: Rows) -> str:
    rule, budget = best_coordinates(rows) or (None, None)
    return verdicts.reaches(select(rows, rule=rule, budget=budget, part=MAIN) if rule else [], 0.85, 0.90)


def _controls(rows: Rows) -> str:
    told = [
        f"{budget:.1%} {mean_of(same, 'regained')}"
        for budget, same in sorted(by(select(rows, rule="random", part=MAIN), lambda row: row["budget"]).items())
    ]
    subspace = mean_of(select(rows, rule="random subspace", part=MAIN), "regained")
    return f"coordinates {', '.join(told) or 'not measured'}; subspace {subspace}"


def _behind(rows: Rows) -> tuple[Key, dict[str, list[float]]] | None:
    """Return the fixed rule that is best where a search was tried, and by how much the search is behind it there."""
    chosen = {scene_of(row): row for row in select(rows, rule="auto")}
    fixed = by(
        [row for row in rows if scene_of(row) in chosen and row["rule"] in (*_SCORES, "dense subspace", "few prompts")],
        lambda row: (row["rule"], row["budget"], row["rows"], row["passes"], row["n"]),
    )
    whole = {key: same for key, same in fixed.items() if len(same) == len(chosen)}
    if not whole:
        return None
    best = max(whole, key=lambda key: mean_of(whole[key], "regained").mean + mean_of(whole[key], "kept").mean)
    gaps = {share: [row[share] - chosen[scene_of(row)][share] for row in whole[best]] for share in ("regained", "kept")}
    return best, gaps


def _auto(rows: Rows) -> str:
    found = _behind(rows)
    if found is None:
        return "not measured"
    best, behind = found
    gaps = " / ".join(f"{Mean(tuple(values))}, at worst {max(values):.2f}" for values in behind.values())
    rule = ", ".join(str(part) for part in best if part is not None)
    return f"behind the best fixed rule ({rule}) by {gaps}; auto itself {shares(select(rows, rule='auto'))}"


def _auto_verdict(rows: Rows) -> str:
    found = _behind(rows)
    return verdicts.behind(list(found[1].values()) if found else [], 0.02)


def _damage(rows: Rows) -> str:
    told = []
    for curvature, same in by(
        select(rows, rule=("damage, ggn", "damage, ggn at 3 points", "damage, fisher")), lambda r: r["rule"]
    ).items():
        pairs = [(row["predicted"], row["value"]) for row in same if row["predicted"] is not None]
        told.append(f"{curvature.removeprefix('damage, ')} {spearman(pairs):.2f} (n = {len(pairs)})")
    return ", ".join(told) or "not measured"


def _refreshes(rows: Rows) -> str:
    """Steps to 90%, and what each way of protecting costs the later domain at equal recovery."""
    told = []
    for part in ("pairs", "deep"):
        plain = by(select(rows, rule="refresh", part=part), scene_of)
        if not plain:
            continue
        reached = [row for same in plain.values() if (row := first_to(same, 0.9)) is not None]
        steps = Mean(tuple(float(row["steps"]) for row in reached))
        took = f"plain {steps} steps " if reached else ""
        told.append(f"{part}: {took}({len(reached)} of {len(plain)} reach it)")
        for rule, (a, b, count) in _collateral(rows, part).items():
            told.append(f"collateral loss {a:.3f} plain, {b:.3f} {rule} (n = {count})")
    return "; ".join(told) or "not measured"


def _collateral(rows: Rows, part: str) -> dict[str, tuple[float, float, int]]:
    """For each way of protecting the mean loss of the later domain without it and with it, and over how many scenes."""
    plain = by(select(rows, rule="refresh", part=part), scene_of)
    found = {}
    for rule in ("project", "fisher"):
        bent = by(select(rows, rule=f"refresh, {rule}", part=part), scene_of)
        equal = [_at_equal_recovery(plain[scene], same) for scene, same in bent.items() if scene in plain]
        if equal:
            a, b = (sum(losses) / len(equal) for losses in zip(*equal, strict=True))
            found[rule] = a, b, len(equal)
    return found


def _refresh_verdict(rows: Rows) -> str:
    parts = {part: [(a, b) for a, b, _ in _collateral(rows, part).values()] for part in ("pairs", "deep")}
    return verdicts.halved(parts)


def _at_equal_recovery(one: Rows, other: Rows) -> tuple[float, float]:
    """What two refreshes of a scene cost the later domain, each at its first look at 90%, or at what both reach."""
    level = min([0.9, *(max(row["regained"] for row in side) for side in (one, other))])
    first, second = (first_to(side, level) for side in (one, other))
    assert first is not None
    assert second is not None
    return first["later_now"] - first["later_after"], second["later_now"] - second["later_after"]


def _peaks(rows: Rows) -> str:
    gaps = [
        f"{method}: " + ", ".join(f"{row['value']:.3f}" for row in same)
        for method, same in by(
            select(rows, rule="peaks, rollback", passes=2, part=("sequence", "bases")), lambda row: row["method"]
        ).items()
    ]
    return "largest gap of a domain, by run: " + ("; ".join(gaps) or "not measured")


def _by_base(rows: Rows) -> dict[str, Rows]:
    return by(_dense(rows, 2, part=("sequence", "bases"), method="grpo"), lambda row: row["base"])


def _bases(rows: Rows) -> str:
    return "; ".join(f"{base} {shares(same)}" for base, same in _by_base(rows).items()) or "not measured"


def _sizes(rows: Rows) -> str:
    """The n that each size takes, the law of it, and the rule by which prompts grow least with the size."""
    grown = select(rows, rule="growth")
    plain = select(grown, rows="sequence", passes=1, mu=None)
    told = []
    for size, same in by(plain, lambda row: row["size"]).items():
        enough = min((row["n"] for row in same if row["regained"] >= 0.9), default=math.inf)
        told.append(
            f"{size}: 0.90 from n = {enough}"
            if math.isfinite(enough)
            else f"{size}: 0.90 not reached by n = {max(row['n'] for row in same)}"
        )
    if (law := law_of_growth(plain)) is not None:
        told.append(f"n ∝ N^{law[1] / law[0]:.2f}")
        powers = {}
        for key, same in by(grown, lambda row: (row["rows"], row["passes"], row["mu"])).items():
            if (one := law_of_growth(same)) is not None:
                powers[key] = one[1] / one[0]
        kind, passes, mu = min(powers, key=lambda key: powers[key])
        given = "" if mu is None else f", μ {mu}"
        told.append(f"least, with `{kind}` rows, passes: {passes}{given}: N^{powers[kind, passes, mu]:.2f}")
    return "; ".join(told) or "not measured"


BARS = (
    Bar(
        "conflict subspace, one pass, n = {samples} a domain",
        "0.95 / 0.96",
        lambda rows: shares(_dense(rows, 1)),
        lambda rows: verdicts.reaches(_dense(rows, 1), 0.95, 0.96),
    ),
    Bar(
        "{few} prompts a domain, `logit` rows, two passes",
        "0.85 / 0.92",
        lambda rows: shares(_few(rows)),
        lambda rows: verdicts.reaches(_few(rows), 0.85, 0.92),
    ),
    Bar(
        "old bits at 2% of the coordinates by `subspace`",
        f"0.90 / 0.93 where the loss is under {_DEEP:g}",
        _old_bits,
        verdicts.old_bits,
    ),
    Bar(
        "two passes, dense",
        "0.98 / 0.96",
        lambda rows: shares(_dense(rows, 2)),
        lambda rows: verdicts.reaches(_dense(rows, 2), 0.98, 0.96),
    ),
    Bar(f"an older domain that fell under {NEAR_ZERO:g}: two passes", "0.95 regained", _near_zero, verdicts.near_zero),
    Bar(
        "narrow weights: distance of either share from the float32 result",
        "within 0.03",
        _rounding,
        verdicts.rounding,
    ),
    Bar("restoring one older domain moves another", "under 0.40", _selectivity, verdicts.selectivity),
    Bar("best coordinate rule, at most 5% of coordinates", "0.85 / 0.90", _best_coordinates, _best_verdict),
    Bar("controls: random coordinates, a random subspace", "under 0.20 regained", _controls, verdicts.controls),
    Bar("`--auto` against the best fixed rule", "behind by 0.02 at most", _auto, _auto_verdict),
    Bar("samples against the model's size", "a law, and what flattens it", _sizes, lambda _: verdicts.NO_BAR),
    Bar("predicted against measured damage, Spearman", "0.90 (GGN)", _damage, verdicts.damage),
    Bar(
        "refresh: steps to 90%; collateral loss at equal recovery",
        "halved by protection",
        _refreshes,
        _refresh_verdict,
    ),
    Bar("code → math → qa → writing: gap to each domain's own peak", "within 0.03", _peaks, verdicts.peaks),
    Bar(
        "bases pretrained apart: two passes",
        "0.98 / 0.96 on each",
        _bases,
        lambda rows: verdicts.each(list(_by_base(rows).values()), 0.98, 0.96),
    ),
)
"""Every bar of the study. Shares are regained / kept, mean ± standard deviation over pairs and seeds."""
