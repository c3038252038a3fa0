"""`experiment`: what it asks of the library, and what it says of a plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import run

CONFIG = Path(__file__).parents[2] / "configs" / "miniature.yaml"


def test_a_dry_run_counts_what_would_be_done_and_writes_nothing(tmp_path: Path) -> None:
    whole = run("experiment", CONFIG, "-o", tmp_path / "out", "--dry-run", "--json").json
    short = run("experiment", CONFIG, "-o", tmp_path / "out", "--fast", "--dry-run", "--json").json
    assert whole["scenes"]["all"] > 70 > 10 > short["scenes"]["all"] > 0
    assert whole["stages"]["done"] == whole["scenes"]["done"] == 0
    assert whole["out"] is None
    shown = run("experiment", CONFIG, "-o", tmp_path / "out", "--only", "sizes", "--dry-run").out.splitlines()
    assert [line.split()[0] for line in shown] == ["bases:", "stages:", "scenes:", "would"]
    assert " 0 of " in shown[1]
    assert not list(tmp_path.iterdir())


def test_the_parts_and_processes_that_are_asked_for_are_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def run_study(study: Any, out: Path, **options: Any) -> list[Path]:
        asked.update(options, seeds=study.seeds)
        return [out / "results.csv"]

    monkeypatch.setattr("rlforget.experiments.recovery_study.run_study", run_study)
    done = run("experiment", CONFIG, "-o", tmp_path / "out", "--only", "sequence", "--only", "pairs", "--jobs", "2")
    assert done.code == 0
    assert asked["parts"] == ("pairs", "sequence")
    assert asked["processes"] == 2
    assert "wrote" in done.out


def test_bad_input_is_named(tmp_path: Path) -> None:
    wrong = run("experiment", CONFIG, "-o", tmp_path / "out", "--only", "everything")
    assert wrong.code == 2
    assert "everything" in wrong.err
    (tmp_path / "study.yaml").write_text("seed: [0]\ndomains: [code, math]\n")
    assert "key seed" in run("experiment", tmp_path / "study.yaml", "-o", tmp_path / "out").fault
