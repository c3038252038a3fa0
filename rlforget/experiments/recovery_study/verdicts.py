"""Whether what was measured reaches a bar: judged by means over scenes, rounded to the two decimals that are shown."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rlforget.experiments.recovery_study.reading import by, mean_of, scene_of, select, spearman
from rlforget.experiments.recovery_study.scene import Row

Rows = list[Row]
MET, MISSED, NOT_MEASURED, NO_BAR = "met", "missed", "not measured", "–"
MAIN = ("pairs", "sequence")


def reaches(rows: Rows, regained: float, kept: float = -math.inf) -> str:
    """Judge both shares of some rows, each by its mean."""
    if not rows:
        return NOT_MEASURED
    both = mean_of(rows, "regained").mean, mean_of(rows, "kept").mean
    return _said(_rounded(both[0]) >= regained and _rounded(both[1]) >= kept)


def within(values: Sequence[float], most: float) -> str:
    """Judge the largest of some numbers, e.g. means, against a bar from above."""
    return _said(_rounded(max(values)) <= most) if values else NOT_MEASURED


def controls(rows: Rows) -> str:
    """Judge every control on its own: random coordinates by how many they are, and a random subspace."""
    random = select(rows, rule="random", part=MAIN)
    means = {f"{budget:.1%}": mean_of(same, "regained").mean for budget, same in by(random, _budget).items()}
    if directions := select(rows, rule="random subspace", part=MAIN):
        means["a random subspace"] = mean_of(directions, "regained").mean
    above = [name for name, mean in means.items() if _rounded(mean) >= 0.2]
    if not means:
        return NOT_MEASURED
    return f"{MISSED} by {', '.join(above)}; {MET} by the others" if above else MET


def old_bits(rows: Rows) -> str:
    """Judge old bits where the loss is not deep."""
    found = select(rows, rule="subspace", budget=0.02, part=MAIN)
    return reaches([row for row in found if row["then"] - row["now"] < 0.35], 0.90, 0.93)


def near_zero(rows: Rows, passes: int = 2) -> str:
    """Judge what a domain that was nearly gone regains; more passes are told of where those meet the bar."""
    fallen = [row for row in rows if row["now"] is not None and row["now"] < 0.1 and row["then"] > 0.5]
    verdict = reaches(select(fallen, rule="dense subspace", passes=passes), 0.95)
    more = select(fallen, rule="dense subspace", passes=passes + 1)
    if verdict == MISSED and reaches(more, 0.95) == MET:
        return f"{MISSED}; {MET} in {passes + 1} passes"
    return verdict


def rounding(rows: Rows) -> str:
    """Judge narrow weights by the mean distance of the worse share, for every dtype and way."""
    known = [row for row in rows if row["regained"] is not None and row["kept"] is not None]
    exact = {(row["dtype"], scene_of(row)): row for row in select(known, rule="rounding, float32")}
    narrow = select(known, rule=("rounding, stochastic", "rounding, nearest"))
    means = []
    for same in by(narrow, lambda row: (row["rule"], row["dtype"])).values():
        pairs = [(row, exact[row["dtype"], scene_of(row)]) for row in same]
        means.append(sum(max(abs(a[of] - b[of]) for of in ("regained", "kept")) for a, b in pairs) / len(pairs))
    return within(means, 0.03)


def selectivity(rows: Rows) -> str:
    """Judge how much of another domain's loss comes back; protecting it is told of where that meets the bar."""
    alone, protected = (
        [mean_of(found, "value").mean] if (found := select(rows, rule=rule)) else []
        for rule in ("one alone", "one alone, others protected")
    )
    verdict = _under(alone, 0.4)
    if verdict == MISSED and _under(protected, 0.4) == MET:
        return f"{MISSED}; {MET} with the other protected"
    return verdict


def behind(gaps: Sequence[Sequence[float]], most: float) -> str:
    """Judge by how much something is behind, share by share: on the average, and then at its worst."""
    if not gaps or not all(gaps):
        return NOT_MEASURED
    if within([sum(one) / len(one) for one in gaps], most) == MISSED:
        return MISSED
    worst = max(max(one) for one in gaps)
    return f"{MET} on the average; {MISSED} at worst" if _rounded(worst) > most else MET


def damage(rows: Rows) -> str:
    """Judge the ranks of predicted damage, at the beginning and along the way."""
    found = {}
    for rule in ("damage, ggn", "damage, ggn at 3 points"):
        same = [row for row in select(rows, rule=rule) if row["predicted"] is not None]
        found[rule] = _rounded(spearman([(row["predicted"], row["value"]) for row in same]))
    first, along = found.values()
    if math.isnan(first):
        return NOT_MEASURED
    if first >= 0.9:
        return MET
    return f"{MISSED}; {MET} at 3 points" if along >= 0.9 else MISSED


def halved(losses: dict[str, list[tuple[float, float]]]) -> str:
    """Judge, part by part, whether protection halves what a refresh costs, by every way to protect.

    Args:
        losses: For each part, the mean cost without protection and with it, for each way.
    """
    told = {part: _said(all(bent <= plain / 2 for plain, bent in pairs)) for part, pairs in losses.items() if pairs}
    if len(set(told.values())) <= 1:
        return next(iter(told.values()), NOT_MEASURED)
    return "; ".join(f"{verdict} on {part}" for part, verdict in told.items())


def each(groups: Sequence[Rows], regained: float, kept: float) -> str:
    """Judge every group of rows on its own."""
    verdicts = [reaches(same, regained, kept) for same in groups]
    missed = verdicts.count(MISSED)
    if not verdicts:
        return NOT_MEASURED
    return f"{MISSED} by {missed} of {len(verdicts)}" if missed else MET


def peaks(rows: Rows) -> str:
    """Judge the largest gap of every run."""
    found = select(rows, rule="peaks, rollback", passes=2, part=("sequence", "bases"))
    over = sum(round(row["value"], 3) > 0.03 for row in found)
    if not found:
        return NOT_MEASURED
    return f"{MISSED} by {over} of {len(found)}" if over else MET


def _under(values: Sequence[float], bar: float) -> str:
    return _said(all(_rounded(value) < bar for value in values)) if values else NOT_MEASURED


def _said(met: bool) -> str:
    return MET if met else MISSED


def _rounded(value: float) -> float:
    return round(value, 2)


def _budget(row: Row) -> float:
    return float(row["budget"])
