"""The page about a history."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from rlforget.errors import HistoryError
from rlforget.history import History
from rlforget.report import write_report
from rlforget.report.history_page import compose_history
from tests.report.made_history import NAMES, made_history
from tests.report.pages import Page
from tests.report.test_page import HOSTILE, sections_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return made_history(tmp_path)


def page_of(folder: Path) -> Page:
    return Page(compose_history(folder, library="// plotly.js"))


def test_it_tells_stages_metrics_and_blame(folder: Path) -> None:
    page = page_of(folder)
    assert sections_of(page) == ["stages", "metrics", "blame", "origin"]
    assert len(page.figures) == 3
    stages, changed, measured, blamed, back = page.texts("li")
    assert "3 stages on 2 branches; HEAD is writing" in stages
    assert "math 16.7% and writing 41.7%" in changed
    assert "math fell from 0.90 to 0.40" in measured
    assert "50.0% of the coordinates still have the base's bits" in blamed
    assert back == "Of 28 changes of a coordinate, 4 brought back bits that it had before."


def test_the_graph_has_an_edge_for_every_stage_and_a_lane_for_every_branch(folder: Path) -> None:
    edges, dots = page_of(folder).figures["stages-0"][0]["data"]
    assert dots["text"] == ["base", "math (best)", "side", "writing (HEAD)"]
    assert dots["x"] == [0, 1, 2, 3]
    assert dots["y"] == [0, 0, 0, -1]
    ends = [x for x in edges["x"] if x is not None]
    assert [(ends[i], ends[i + 2]) for i in range(0, len(ends), 3)] == [(0, 1), (1, 2), (1, 3)]


def test_the_bars_of_a_layer_are_the_shares_that_each_stage_changed_last(folder: Path) -> None:
    bars = {trace["name"]: trace for trace in page_of(folder).figures["blame-0"][0]["data"]}
    names = bars["base"]["customdata"]
    shares = {name: dict(zip(names, trace["x"], strict=True)) for name, trace in bars.items()}
    assert shares == {
        "base": {"layer 0": 0.5, "layer 1": 0.0, "elsewhere": 1.0},
        "math": {"layer 0": 0.25, "layer 1": 0.0, "elsewhere": 0.0},
        "writing": {"layer 0": 0.25, "layer 1": 1.0, "elsewhere": 0.0},
    }


def test_every_fingerprint_stands_on_the_page(folder: Path) -> None:
    page, index = page_of(folder), History.open(folder).index
    cells = page.texts("td")
    assert index.base.fingerprint in cells
    assert all(stage.after in cells for stage in index.stages)
    assert all(any(stage.delta.sha256 in cell for cell in cells) for stage in index.stages)


def test_messages_and_metrics_are_never_markup(folder: Path) -> None:
    page = page_of(folder)
    assert [name for name, _, _ in page.elements if name == "script"] == ["script"] * 3
    assert not [name for name, given, _ in page.elements if name in ("img", "a") or "onload" in given]
    assert any(HOSTILE in text for text in page.texts("td"))
    assert any(HOSTILE in text for text in page.texts("button"))


def test_without_the_base_one_line_says_why_there_is_no_blame(folder: Path) -> None:
    (folder.parent / "base.safetensors").unlink()
    page = page_of(folder)
    assert sections_of(page) == ["stages", "metrics", "origin"]
    assert [text for text in page.texts("p") if text.startswith("Blame is left out: ")]


def test_a_history_of_nothing_yet_is_a_page(folder: Path, tmp_path: Path) -> None:
    history = History.init(tmp_path / "empty", folder.parent / "base.safetensors")
    page = page_of(history.folder)
    assert sections_of(page) == ["stages", "blame", "origin"]
    assert "0 stages on 1 branch; HEAD is base" in page.texts("li")[0]
    assert [text for text in page.texts("p") if "--metric NAME=NUMBER" in text]


def test_the_command_takes_a_history_and_names_one_that_is_damaged(folder: Path, tmp_path: Path) -> None:
    assert "<!doctype html>" in write_report(folder, tmp_path / "page.html").read_text(encoding="utf-8")
    shutil.copytree(folder, tmp_path / "damaged")
    (tmp_path / "damaged" / "history.json").write_text("{")
    with pytest.raises(HistoryError):
        write_report(tmp_path / "damaged", tmp_path / "damaged.html")


def test_the_scores_of_a_run_are_one_number_each_with_their_errors(folder: Path) -> None:
    scores = {"math": {"mean": 0.7, "stderr": 0.02, "count": 64}, "qa": {"mean": 0.5, "stderr": 0.03, "count": 64}}
    metrics = {"scores": scores, "training": {"steps": 60, "seconds": 31.5}, "kept": 1.01, "kept_stderr": 0.04}
    history = History.open(folder)
    weights = {name: history.weights("HEAD").tensor(name) + 1.0 for name in NAMES}
    history.commit(weights, domain="qa", message="a run", metrics=metrics)
    page = page_of(folder)
    traces = {trace["name"]: trace for trace in page.figures["metrics-0"][0]["data"]}
    assert {"math", "qa", "kept"} <= traces.keys()
    assert not {"training steps", "math count", "math_stderr"} & traces.keys()  # of another scale, or no metric
    assert traces["math"]["y"][-1] == 0.7
    assert traces["math"]["error_y"]["array"][-1] == 0.02
    assert {"training steps", "0.7 ± 0.02", "1.01 ± 0.04"} <= {*page.texts("button"), *page.texts("td")}
    assert any("The table has all of them." in text for text in page.texts("p"))
    assert any("math fell from 0.90 to 0.70" in text for text in page.texts("figcaption"))


def test_metrics_of_another_scale_are_drawn_where_there_are_no_others(folder: Path, tmp_path: Path) -> None:
    history = History.init(tmp_path / "other", folder.parent / "base.safetensors")
    weights = {name: torch.ones(4, 4) for name in NAMES}
    history.commit(weights, domain="math", message="math", metrics={"loss": 2.5})
    assert [one["name"] for one in page_of(tmp_path / "other").figures["metrics-0"][0]["data"]] == ["loss"]
