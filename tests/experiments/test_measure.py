"""What regained and kept mean."""

from __future__ import annotations

import math

from rlforget.experiments.measure import kept, regained
from rlforget.experiments.summary import summarise
from rlforget.experiments.tables import summary_table

THEN = {"code": 0.9, "math": 1.0, "qa": 0.5, "writing": 0.3}
NOW = {"code": 0.7, "math": 0.8, "qa": 0.9, "writing": 0.7}


def test_doing_nothing_regains_nothing_and_keeps_everything() -> None:
    assert regained(THEN, NOW, NOW) == 0.0
    assert math.isclose(kept(THEN, NOW, NOW), 1.0)


def test_undoing_everything_regains_everything_and_keeps_nothing() -> None:
    assert math.isclose(regained(THEN, NOW, THEN), 1.0)
    assert kept(THEN, NOW, THEN) == 0.0


def test_shares_are_of_the_sums() -> None:
    repaired = {"code": 0.9, "math": 0.8, "qa": 0.7, "writing": 0.7}
    assert math.isclose(regained(THEN, NOW, repaired), 0.5)
    assert math.isclose(kept(THEN, NOW, repaired), 0.75)


def test_nothing_lost_leaves_no_share() -> None:
    assert math.isnan(regained(NOW, NOW, THEN))


def test_summary_averages_over_seeds() -> None:
    def run(seed: int, share: float) -> dict[str, object]:
        tuned = {"rewards": {"writing": share}, "forgotten": share, "sparsity": {"bfloat16": share}}
        repair = {"rule": "fisher", "fraction": 0.05, "regained": share, "kept": 1.0, "norm_share": 0.1}
        return {
            "seed": seed,
            "lost": {"math": share},
            "repairs": [repair],
            "sft_and_rl": {"target": "writing", "grpo": tuned, "sft": tuned},
        }

    summary = summarise([run(0, 0.5), run(3, 1.0)])
    assert summary["seeds"] == [0, 3]
    assert summary["lost"]["math"] == {"mean": 0.75, "values": [0.5, 1.0]}
    assert summary["repairs"][0]["regained"] == {"mean": 0.75, "values": [0.5, 1.0]}
    assert any("0.75 (0.50, 1.00)" in " ".join(line.split()) for line in summary_table(summary))
