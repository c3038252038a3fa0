"""What the page reads out of a table."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlforget.experiments.recovery_study.bars import BARS, best_coordinates
from rlforget.experiments.recovery_study.page import page
from rlforget.experiments.recovery_study.reading import Mean, first_to, law_of_growth, pooled, select, shares, spearman
from rlforget.experiments.recovery_study.table import read_table, write_table
from tests.experiments.recovery_study.made import TINY, row

MEASURED = {bar.what: bar.measured for bar in BARS}


def _measured(start: str, rows: list[dict[str, object]]) -> str:
    (found,) = (measured for what, measured in MEASURED.items() if what.startswith(start))
    return found(rows)


def test_shares_come_with_spread_and_count() -> None:
    rows = [row("dense subspace", passes=1, regained=r, kept=k) for r, k in ((0.9, 1.0), (1.0, 0.9))]
    assert shares(rows) == "0.95 ± 0.07 / 0.95 ± 0.07 (n = 2)"
    assert _measured("conflict subspace, one pass", rows) == shares(rows)
    assert _measured("two passes", rows) == "not measured"
    assert str(Mean((0.5,))) == "0.50"


def test_a_narrow_dtype_is_held_against_float32_of_its_own_scene() -> None:
    rows = [
        row("rounding, float32", dtype="bfloat16", seed=0, regained=0.9, kept=1.0, value=0.5),
        row("rounding, float32", dtype="bfloat16", seed=1, regained=0.5, kept=1.0, value=0.7),
        row("rounding, stochastic", dtype="bfloat16", seed=1, regained=0.5, kept=0.98),
        row("rounding, stochastic", dtype="bfloat16", seed=0, regained=0.86, kept=1.0),
        row("rounding, nearest", dtype="bfloat16", seed=0, regained=0.1, kept=1.0),
    ]
    told = _measured("narrow weights", rows)
    assert told == "bfloat16 (60% of the changes one unit): stochastic 0.03 ± 0.01, nearest 0.80 (n = 2)"


def test_protection_is_judged_at_equal_recovery() -> None:
    plain = [
        row("refresh", steps=s, regained=r, later_after=a) for s, r, a in ((1, 0.5, 0.9), (5, 0.95, 0.8), (9, 1.0, 0.5))
    ]
    bent = [row("refresh, project", steps=s, regained=r, later_after=a) for s, r, a in ((5, 0.8, 0.9), (9, 0.91, 0.86))]
    told = _measured("refresh:", [*plain, *bent])
    assert told == "pairs: plain 5.00 steps (1 of 1 reach it); collateral loss 0.100 plain, 0.040 project (n = 1)"
    deep = [{**one, "part": "deep"} for one in (*plain[:1], *bent[:1])]  # neither gets to 90%: held at half
    assert _measured("refresh:", deep) == (
        "deep: (0 of 1 reach it); collateral loss 0.000 plain, 0.000 project (n = 1)"
    )
    assert first_to(plain, 0.99) == plain[2]
    assert first_to(plain, 1.01) is None


def test_coordinates_are_told_apart_by_how_deep_the_loss_is() -> None:
    rows = [
        row("subspace", budget=0.02, then=0.9, now=0.7, regained=0.9, kept=1.0),
        row("subspace", budget=0.02, then=0.9, now=0.1, regained=0.5, kept=0.8),
        row("fisher", budget=0.05, regained=1.0, kept=0.95),
        row("fisher", budget=0.2, regained=1.0, kept=1.0),
    ]
    assert _measured("old bits", rows) == "0.90 / 1.00 (n = 1); deeper: 0.50 / 0.80 (n = 1)"
    assert best_coordinates(rows) == ("fisher", 0.05)


def test_auto_is_held_against_the_rule_that_is_best_over_all_its_scenes() -> None:
    rows = [
        *(row("auto", seed=s, regained=0.9, kept=1.0) for s in (0, 1)),
        *(row("fisher", seed=s, budget=0.05, regained=0.92, kept=0.99) for s in (0, 1)),
        row("subspace", seed=0, budget=0.02, regained=2.0, kept=2.0),  # not tried in every scene
    ]
    told = _measured("`--auto`", rows)
    assert told.startswith("behind the best fixed rule (fisher, 0.05) by 0.02 ± 0.00, at worst 0.02 / -0.01")


def _verdict(start: str, rows: list[dict[str, object]]) -> str:
    (found,) = (bar.verdict for bar in BARS if bar.what.startswith(start))
    return found(rows)


def test_a_verdict_is_by_the_means_as_they_are_shown() -> None:
    def dense(regained: float, kept: float, **fields: object) -> dict[str, object]:
        return row("dense subspace", passes=2, regained=regained, kept=kept, **fields)

    assert _verdict("two passes, dense", [dense(0.9751, 1.0), dense(0.9751, 0.92)]) == "met"  # 0.98 / 0.96
    assert _verdict("two passes, dense", [dense(0.974, 1.0)]) == "missed"
    assert _verdict("two passes, dense", [dense(1.0, 0.954)]) == "missed"
    assert _verdict("two passes, dense", []) == "not measured"
    bases = [dense(1.0, 1.0, base="one", part="bases"), dense(0.9, 1.0, base="two", part="bases")]
    assert _verdict("bases pretrained", bases) == "missed by 1 of 2"
    gone = {"now": 0.05, "then": 0.9}
    thrice = row("dense subspace", passes=3, regained=0.96, kept=1.0, **gone)
    assert _verdict("an older domain", [dense(0.9, 1.0, **gone)]) == "missed"
    assert _verdict("an older domain", [dense(0.9, 1.0, **gone), thrice]) == "missed; met in 3 passes"


def test_each_control_and_each_way_is_judged_on_its_own() -> None:
    random = [row("random", budget=budget, regained=regained) for budget, regained in ((0.02, 0.1), (0.2, 0.5))]
    assert _verdict("controls", random) == "missed by 20.0%; met by the others"
    assert _verdict("controls", [*random[:1], row("random subspace", regained=0.0)]) == "met"
    exact = row("rounding, float32", dtype="bfloat16", regained=0.9, kept=1.0, value=0.5)
    near = row("rounding, stochastic", dtype="bfloat16", regained=0.88, kept=1.0)
    assert _verdict("narrow", [exact, near]) == "met"
    assert _verdict("narrow", [exact, near, {**near, "rule": "rounding, nearest", "regained": 0.7}]) == "missed"
    alone = [row("one alone", value=0.7, regained=1.0)]
    assert _verdict("restoring", alone) == "missed"
    protected = row("one alone, others protected", value=0.1, regained=0.9)
    assert _verdict("restoring", [*alone, protected]) == "missed; met with the other protected"


def test_auto_and_protection_are_judged_on_the_average_and_apart() -> None:
    fixed = [row("fisher", seed=s, budget=0.05, regained=r, kept=1.0) for s, r in ((0, 1.0), (1, 0.9))]
    auto = [row("auto", seed=s, regained=r, kept=1.0) for s, r in ((0, 0.9), (1, 1.0))]
    assert _verdict("`--auto`", [*fixed, *auto]) == "met on the average; missed at worst"
    assert _verdict("`--auto`", [*fixed, {**auto[0], "regained": 0.8}, auto[1]]) == "missed"
    plain = row("refresh", steps=5, regained=0.95, later_after=0.8)
    halved = row("refresh, project", steps=5, regained=0.95, later_after=0.86)
    assert _verdict("refresh:", [plain, halved]) == "met"
    deep = [{**plain, "part": "deep"}, {**halved, "part": "deep", "later_after": 0.8}]
    assert _verdict("refresh:", [plain, halved, *deep]) == "met on pairs; missed on deep"
    assert _verdict("refresh:", [plain, halved, row("refresh, fisher", steps=5, regained=0.95, later_after=0.8)]) == (
        "missed"
    )


def test_ranks_and_peaks_are_judged() -> None:
    told = [row("damage, ggn", predicted=float(i), value=float(i % 3)) for i in range(6)]
    along = [row("damage, ggn at 3 points", predicted=float(i), value=float(i)) for i in range(6)]
    assert _verdict("predicted against", told) == "missed"
    assert _verdict("predicted against", [*told, *along]) == "missed; met at 3 points"
    assert _verdict("predicted against", [{**one, "rule": "damage, ggn"} for one in along]) == "met"
    gaps = [row("peaks, rollback", passes=2, part="sequence", value=value) for value in (0.03, 0.031)]
    assert _verdict("code → math", gaps) == "missed by 1 of 2"
    assert {bar.verdict([]) for bar in BARS} == {"not measured", "–"}


def test_pooled_shares_weigh_losses_by_their_size() -> None:
    rows = [
        row("random", then=0.9, now=0.5, after=0.5, later_then=0.0, later_now=0.6, later_after=0.6),
        row("random", then=0.9, now=0.8, after=0.9, later_then=0.0, later_now=0.2, later_after=0.0),
    ]
    assert pooled(rows) == "0.20 / 0.75"
    assert pooled([row("random")]) == "not measured / not measured"


def test_ranks_correlate() -> None:
    assert spearman([(1, 10), (2, 20), (3, 300)]) == pytest.approx(1.0)
    assert spearman([(1, 3), (2, 2), (3, 1)]) == pytest.approx(-1.0)


def test_a_law_of_growth_is_found_again() -> None:
    rows = [
        row("growth", size=f"{millions}M", n=n, regained=1.0 - 0.8 * n**-0.5 * millions**0.25)
        for millions in (0.2, 1, 4)
        for n in (4, 16, 64, 256)
    ]
    found = law_of_growth(rows)
    assert found is not None
    assert found == pytest.approx((0.5, 0.25, 64.0), rel=1e-3)
    assert law_of_growth(rows[:4]) is None  # one size
    assert law_of_growth([{**one, "regained": 0.5} for one in rows]) is None  # more prompts do not help


def test_a_table_comes_back_as_it_was(tmp_path: Path) -> None:
    rows = [row("random", budget=0.02, regained=0.125), row("none", counts=False)]
    write_table(rows, tmp_path / "table.csv")
    back = read_table(tmp_path / "table.csv")
    assert select(back, rule="random", counts=True, budget=(0.02, 0.05))[0]["regained"] == 0.125
    assert select(back, rule="none")[0]["counts"] is False
    assert select(back, rule="none")[0]["regained"] is None
    with pytest.raises(ValueError, match="wrong"):
        write_table([{"wrong": 1}], tmp_path / "other.csv")


def test_a_page_of_nothing_says_so() -> None:
    told = page([], {**TINY, "least_loss": 0.05}, "the command", "versions", {})
    assert told.count("not measured") >= 10
    assert "2602.12566" in told
