"""The damage and the conflict subspace of a run: read with care, drawn as they are, and missed in one line each."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlforget.errors import ReportError
from rlforget.report import plots
from rlforget.report.measured_files import CONFLICT_FILE, DAMAGE_FILE, read_damage, read_subspace
from rlforget.report.page import check_run, compose
from rlforget.report.results import parse_results
from tests.report.made_measurements import TENSORS, made_conflict, made_damage
from tests.report.pages import Page
from tests.report.test_page import HOSTILE, hostile, sections_of, strings
from tests.report.test_plots import DARK, LIGHT, coloured
from tests.report.test_results import JUNK, _put, _ways


@pytest.fixture
def measured(run: Path) -> Path:
    """A run with both files in its folder."""
    (run / DAMAGE_FILE).write_text(json.dumps(made_damage()))
    (run / CONFLICT_FILE).write_text(json.dumps(made_conflict()))
    return run


def page_of(run: Path) -> Page:
    results = parse_results(json.loads((run / "results.json").read_text()))
    return Page(compose(results, run, library="//", measured=(read_damage(run), read_subspace(run))))


def test_both_have_a_section_with_a_table(measured: Path) -> None:
    page = page_of(measured)
    assert {"damage", "subspace"} < set(sections_of(page))
    assert "math: predicted to lose 0.80 ± 0.03 nats a completion, measured 0.83 ± 0.04" in page.texts("figcaption")
    titles = "\n".join(page.texts("figcaption"))
    top = max(TENSORS, key=lambda name: TENSORS[name])
    assert (
        f"math: {top} holds {0.31 / sum(0.01 + one for one in TENSORS.values()):.0%} of the predicted damage" in titles
    )
    assert "90% of the damage lies in 4 directions; 4 random ones undo 1.9% of it" in titles


def test_without_them_one_line_each_says_which_command_adds_it(run: Path) -> None:
    lines = [text for text in page_of(run).texts("p") if "written into its folder, adds it" in text]
    assert [command_in(line)[1] for line in lines] == ["damage", "conflict"]
    assert [command_in(line)[-1] for line in lines] == [DAMAGE_FILE, CONFLICT_FILE]


def command_in(line: str) -> list[str]:
    return line.split("; ")[1].split(", written")[0].split()


@pytest.mark.parametrize("command", ["damage", "conflict"])
def test_the_command_that_a_line_names_knows_its_options(command: str, run: Path) -> None:
    from tests.cli.conftest import run as invoke

    line = next(text for text in page_of(run).texts("p") if f"rlforget {command} " in text)
    shown = invoke(command, "--help").out
    assert all(word in shown for word in command_in(line) if word.startswith("--"))


def test_the_prediction_is_a_line_and_the_measurement_points_with_errors(measured: Path) -> None:
    found = read_damage(measured)
    assert found is not None
    curve, where = plots.damage_plots(found)
    traces = {trace.get("name"): trace for trace in curve.views[0]["data"]}
    line = traces["predicted (ggn)"]
    assert line["y"][0] == 0
    assert line["y"][-1] == pytest.approx(0.8)
    assert line["y"][len(line["y"]) // 2] == pytest.approx(0.5 * 0.2 + 0.25 * 0.6)
    assert traces["measured"]["y"] == [0.0, 0.24, 0.83]
    assert traces["measured"]["error_y"]["array"] == [0.0, 0.01, 0.04]
    cells = where.views[0]["data"][0]
    shown = [value for row in cells["z"] for value in row]
    assert sorted(shown) == pytest.approx(sorted(0.01 + one for one in TENSORS.values()))
    assert cells["customdata"][0][0][0] == "model.layers.2.q.weight: first order 0.0100, second 0.3000 nats"


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_plotly_takes_every_figure(measured: Path, theme: dict[str, str]) -> None:
    for key, views in coloured(page_of(measured).figures, theme).items():
        if key.startswith(("damage", "subspace")):
            for view in views:
                go.Figure(view)


def test_those_of_the_first_seed_are_shown_where_the_run_has_none(measured: Path) -> None:
    for seed in (10, 9):
        folder = measured / f"seed-{seed}"
        folder.mkdir()
        (folder / DAMAGE_FILE).write_text(json.dumps({**made_damage(), "seed": seed}))
    assert [one.seed for one in read_damage(measured) or []] == [None]
    (measured / DAMAGE_FILE).unlink()
    assert [one.seed for one in read_damage(measured) or []] == [9]
    assert any("completions, seed 9." in text for text in page_of(measured).texts("p"))


def test_text_is_never_markup(measured: Path) -> None:
    (measured / DAMAGE_FILE).write_text(json.dumps(hostile(made_damage())).replace('"math"', json.dumps(HOSTILE)))
    damaged = made_damage()
    damaged["domains"][HOSTILE] = damaged["domains"].pop("math")
    damaged["domains"][HOSTILE]["predicted"]["curvature"] = HOSTILE
    (measured / DAMAGE_FILE).write_text(json.dumps(damaged))
    page = page_of(measured)
    assert [name for name, _, _ in page.elements if name in ("script", "img")] == ["script"] * 3
    assert not [text for text in strings(page.figures) if "<script" in text]
    assert any(HOSTILE in text for text in page.texts("th"))


@settings(max_examples=40)
@given(st.data())
def test_anything_is_read_or_refused_by_name(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("run")
    name, made, read = data.draw(
        st.sampled_from([(DAMAGE_FILE, made_damage, read_damage), (CONFLICT_FILE, made_conflict, read_subspace)])
    )
    raw: Any = made()
    with suppress(KeyError, IndexError, TypeError):
        _put(raw, data.draw(st.sampled_from(_ways(raw))), data.draw(JUNK))
    (folder / name).write_text(json.dumps(raw))
    found: Any = None
    with suppress(ReportError):
        found = read(folder)
    if found is None:
        return
    if name == DAMAGE_FILE:
        plots.damage_plots(found)
    else:
        plots.subspace_plot(found)


def test_a_damaged_file_is_found_before_anything_is_drawn(measured: Path) -> None:
    check_run(measured)
    (measured / DAMAGE_FILE).write_text("{")
    with pytest.raises(ReportError, match=r"damage\.json.*readable JSON"):
        check_run(measured)
