"""The page about a bare sequence: what it kept of every stage, what was lost, and nothing that it did not do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rlforget.delta import diff
from rlforget.errors import ReportError, RlforgetError
from rlforget.report.page import check_run, compose, read_run
from rlforget.report.sequence_run import is_sequence, read_sequence
from rlforget.training.run_folder import RunFolder
from tests.report.pages import Page
from tests.report.test_page import HOSTILE, sections_of

NAME = "model.layers.0.mlp.up_proj.weight"
REWARDS = {
    "base": {"math": 0.2, "qa": 0.3, "code": 0.5},
    "math-1": {"math": 0.9, "qa": 0.3, "code": 0.5},
    "qa-1": {"math": 0.89, "qa": 0.8, "code": 0.5},
    "code": {"math": 0.5, "qa": 0.79, "code": 0.9},
}


def write_run(folder: Path, *, parents: tuple[str, ...] = ("base", "math-1", "qa-1"), note: str = "") -> Path:
    run = RunFolder(folder)
    (folder / "stages").mkdir(parents=True)
    settings = {"seed": 7, "dtype": "auto", "evaluation": {"count": 64}, "note": note}
    run.write(0, "base", {"settings": settings, "fingerprint": "ba5e", "scores": scores("base")}, None)
    before = {NAME: torch.zeros(8, 4)}
    for index, (name, parent) in enumerate(zip(list(REWARDS)[1:], parents, strict=True), start=1):
        after = {NAME: before[NAME].clone()}
        after[NAME][:index] += 1.0
        domain = name.split("-")[0]
        config = {"domain": f"{domain}{note}", "method": "grpo", "steps": 60, "learning_rate": 0.001, "protect": None}
        run.write(index, name, {"parent": parent, "config": config, "scores": scores(name, note)}, diff(before, after))
        before = after
    return folder


def scores(stage: str, note: str = "") -> dict[str, Any]:
    return {f"{domain}{note}": {"mean": mean, "stderr": 0.02, "count": 64} for domain, mean in REWARDS[stage].items()}


def page_of(run: Path) -> Page:
    results, circuits = read_run(run)
    return Page(compose(results, run, library="//", circuits=circuits))


def test_it_tells_rewards_weights_and_what_was_lost(tmp_path: Path) -> None:
    run = write_run(tmp_path / "mine")
    assert is_sequence(run)
    check_run(run)
    page = page_of(run)
    assert sections_of(page) == ["rewards", "places", "steps", "overlaps", "origin"]
    assert page.texts("pre")[0].splitlines()[0] == f"rlforget sequence CONFIG --out {run}"
    assert any("math fell from 0.90 to 0.50" in text for text in page.texts("figcaption"))
    (found,) = read_sequence(run).runs
    assert found.lost == pytest.approx({"math": 0.4})  # qa fell by less than the noise
    cells = page.texts("td")
    assert "ba5e" in cells
    assert "method grpo, steps 60, learning_rate 0.001" in cells
    assert [stage.weights for stage in found.stages[1:]] == [s.delta().fingerprint_after for s in finished(run)]


def finished(run: Path) -> list[Any]:
    return RunFolder(run).finished()[1:]


def test_a_sequence_with_branches_names_no_loss(tmp_path: Path) -> None:
    run = write_run(tmp_path / "mine", parents=("base", "base", "math-1"))
    assert read_sequence(run).runs[0].lost == {}
    assert "rewards" in sections_of(page_of(run))


def test_an_unfinished_sequence_is_told_as_far_as_it_is(tmp_path: Path) -> None:
    run = write_run(tmp_path / "mine")
    for name in ("03-code", "02-qa-1"):
        (run / "stages" / name).rename(tmp_path / name)
    assert [stage.name for stage in read_sequence(run).runs[0].stages] == ["base", "math-1"]
    page_of(run)


def test_text_is_never_markup(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path / "mine", note=HOSTILE))
    assert [name for name, _, _ in page.elements if name in ("script", "img")] == ["script"] * 3
    assert any(HOSTILE in text for text in page.texts("td"))


@pytest.mark.parametrize("record", [[], {}, {"scores": 5}, {"scores": {"math": {"mean": "much"}}}, {"settings": []}])
def test_records_that_are_none_are_refused_by_name(record: Any, tmp_path: Path) -> None:
    run = write_run(tmp_path / "mine")
    (run / "stages" / "00-base" / "stage.json").write_text(json.dumps(record))
    with pytest.raises(RlforgetError, match="mine"):
        check_run(run)


def test_a_folder_without_anything_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="rlforget sequence"):
        check_run(tmp_path)
