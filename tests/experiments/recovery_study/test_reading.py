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
