"""The circuits of a run: read with care, drawn as they are, and missed in one line."""

from __future__ import annotations

import copy
import json
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlforget.circuits import record
from rlforget.errors import ReportError
from rlforget.report import write_report
from rlforget.report.circuits_file import CIRCUITS_FILE, FORMAT, VERSION, parse_circuits, read_circuits
from rlforget.report.plots import CIRCUIT_CHOICES, circuit_plots
from tests.report.made_circuits import HEADS, LAYERS, SIZE, STEPS, made_circuits
from tests.report.pages import Page, page_of
from tests.report.test_page import HOSTILE, SECTIONS, hostile, sections_of, strings
from tests.report.test_plots import DARK, LIGHT, coloured
from tests.report.test_results import JUNK, _put, _ways


@pytest.fixture
def circuits() -> dict[str, Any]:
    found: dict[str, Any] = copy.deepcopy(made_circuits())
    return found


def models(circuits: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The circuit of every model by its name, the base first."""
    compared = circuits["comparison"]
    return {"base": compared["base"]} | {name: runs[0] for name, runs in compared["tuned"].items()}


def retention_of(circuits: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = circuits["comparison"]["kept"][name]["measures"]["retention"]
    return found


def test_reader_and_writer_agree_on_file_and_format() -> None:
    assert (CIRCUITS_FILE, FORMAT, VERSION) == (record.CIRCUITS_FILE, record.FORMAT, record.VERSION)


def test_the_section_stands_in_the_report_of_a_run(run: Path, circuits: dict[str, Any], tmp_path: Path) -> None:
    (run / CIRCUITS_FILE).write_text(json.dumps(circuits))
    page = Page(write_report(run, tmp_path / "page.html").read_text(encoding="utf-8"))
    assert sections_of(page) == [*SECTIONS[:-1], "circuits", "vulnerable", "origin"]
    assert len([key for key in page.figures if key.startswith("circuits-")]) == 3 + 2 + 2
    assert not [text for text in page.texts("p") if "circuits compare" in text]
    choices = [text for text in page.texts("option") if text in CIRCUIT_CHOICES]
    assert tuple(choices) == CIRCUIT_CHOICES
    assert "sft" in page.texts("th")


def test_circuits_make_a_page_of_their_own(circuits: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / CIRCUITS_FILE
    file.write_text(json.dumps(circuits))
    pages = [write_report(place, tmp_path / f"{i}.html").read_text("utf-8") for i, place in enumerate((file, tmp_path))]
    for text, place in zip(pages, (file, tmp_path), strict=True):
        page = Page(text)
        assert sections_of(page) == ["circuits", "vulnerable", "origin"]
        assert len(page.figures) == 3 + 2 + 2 + 1
        assert f"rlforget report {place}" in page.texts("pre")[0]
        assert not [line for line in page.texts("p") if "left out" in line]


def test_neither_run_nor_circuits_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="circuits compare"):
        write_report(tmp_path, tmp_path / "page.html")
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ReportError, match="circuits of the format"):
        write_report(tmp_path / "other.json", tmp_path / "page.html")


def test_without_circuits_one_line_says_which_command_adds_them(results: dict[str, Any]) -> None:
    page = page_of(results)
    assert "circuits" not in sections_of(page)
    lines = [text for text in page.texts("p") if "circuit" in text]
    assert len(lines) == 1
    assert "rlforget circuits compare" in lines[0]
    assert CIRCUITS_FILE in lines[0]


def test_the_command_that_the_line_names_is_one() -> None:
    from rlforget.report.circuits_file import COMMAND
    from tests.cli.conftest import run as command

    program, *words = COMMAND.split()
    assert program == "rlforget"
    shown = command(*[word for word in words if word.islower()][:2], "--help")
    assert shown.code == 0
    assert "--domain" in shown.out


def test_maps_hold_every_head_on_one_scale(circuits: dict[str, Any]) -> None:
    plots = circuit_plots(parse_circuits(circuits))
    maps, differences = plots[:3], plots[3:5]
    (_, base), *tuned = models(circuits).items()
    for plot, (name, one) in zip(maps, models(circuits).items(), strict=True):
        assert plot.views[0]["data"][0]["z"] == one["scores"]
        rings = plot.views[0]["data"][1]
        marked = {(math.floor(y), x) for x, y in zip(rings["x"], rings["y"], strict=True)}
        assert marked == {(i, j) for i in range(LAYERS) for j in range(HEADS) if one["mask"][i][j]}
        shares = [abs(value) for row in plot.views[1]["data"][0]["z"] for value in row]
        assert sum(shares) == pytest.approx(1)
        assert plot.title.startswith(name)
    for plot, (_, one) in zip(differences, tuned, strict=True):
        heat, rings = plot.views[0]["data"]
        for i in range(LAYERS):
            for j in range(HEADS):
                assert heat["z"][i][j] == pytest.approx(one["scores"][i][j] - base["scores"][i][j])
        marked = {(math.floor(y), x) for x, y in zip(rings["x"], rings["y"], strict=True)}
        lost = {(i, j) for i in range(LAYERS) for j in range(HEADS) if base["mask"][i][j]}
        assert marked == {(i, j) for i, j in lost if not one["mask"][i][j]}
    for group in (maps, differences):
        for view in range(len(CIRCUIT_CHOICES)):
            heats = [plot.views[view]["data"][0] for plot in group]
            assert len({heat["zmax"] for heat in heats}) == 1
            assert all(heat["zmin"] == -heat["zmax"] for heat in heats)
            sizes = [abs(value) for heat in heats for row in heat["z"] for value in row]
            assert max(sizes) == heats[0]["zmax"]


def test_titles_say_what_the_numbers_say(circuits: dict[str, Any]) -> None:
    zeros = [[0.0] * HEADS for _ in range(LAYERS)]
    mask = [[layer == 0 for _ in range(HEADS)] for layer in range(LAYERS)]
    other = [[(layer == 0 and head < 3) or (layer, head) == (2, 1) for head in range(HEADS)] for layer in range(LAYERS)]
    moved = [[-0.5 if (i, j) == (0, 3) else 0.25 if (i, j) == (2, 1) else 0.0 for j in range(HEADS)] for i in range(4)]
    of = models(circuits)
    of["base"] |= {"scores": zeros, "mask": mask}
    of["sft"] |= {"scores": moved, "mask": other}
    of["grpo"] |= {"scores": zeros, "mask": mask}
    retention_of(circuits, "sft").update(value=0.75, chance=0.25, ceiling={"mean": 0.9}, at_halves={"mean": 0.7})
    retention_of(circuits, "grpo").update(value=1.0, chance=0.25, ceiling=None)
    titles = [plot.title for plot in circuit_plots(parse_circuits(circuits))]
    assert titles[0] == "base: 4 of 16 heads make up the circuit for science"
    assert titles[1] == "sft: 3 of the base's 4 heads are still in the circuit, with 1 other"
    assert titles[3] == "From base to sft: head 0:3 lost most (−0.50) and head 2:1 gained most (+0.25)"
    assert titles[4] == "From base to grpo: 16 heads are as they were"
    assert titles[5] == (
        "sft keeps 75% of the base's circuit, chance 25% (on halves of the prompts 70%, where the base itself keeps "
        "90%); grpo keeps 100% of the base's circuit, chance 25%"
    )
    assert titles[6].startswith("With sft the reward rose from 0.30 to 0.70 while retention fell from 1.00 to ")


def test_retention_stands_in_its_band_and_below_its_ceiling(circuits: dict[str, Any]) -> None:
    plot = circuit_plots(parse_circuits(circuits))[5]
    low, high, chance, ceiling, *lines = plot.views[0]["data"]
    kept = circuits["comparison"]["kept"]
    sizes = kept["sft"]["sizes"]
    assert [trace["name"] for trace in (high, chance)] == ["95% of chance", "chance"]
    assert high["fill"] == "tonexty"
    for trace, key in ((low, "chance_low"), (high, "chance_high"), (chance, "chance"), (ceiling, "ceiling")):
        assert trace["y"] == [at[key] for at in sizes]
    assert [trace["name"] for trace in lines] == ["sft", "sft on halves", "grpo", "grpo on halves"]
    for position, name in enumerate(kept):
        for trace, key in zip(lines[2 * position :], ("retention", "at_halves"), strict=False):
            assert trace["x"] == [at["size"] for at in kept[name]["sizes"]]
            assert trace["y"] == [at[key] for at in kept[name]["sizes"]]


def test_circuits_without_scores_of_each_prompt_have_no_ceiling(circuits: dict[str, Any]) -> None:
    for one in circuits["comparison"]["kept"].values():
        one["measures"]["retention"].update(ceiling=None, at_halves=None, interval=None, p_prompts=None)
        for at in one["sizes"]:
            at.update(ceiling=None, at_halves=None)
    plot = circuit_plots(parse_circuits(circuits))[5]
    assert [trace["name"] for trace in plot.views[0]["data"][4:]] == ["sft", "grpo"]


def test_several_runs_of_a_recipe_have_a_map_each(circuits: dict[str, Any]) -> None:
    compared = circuits["comparison"]
    compared["tuned"]["sft"] *= 2
    assert [one.name for one in parse_circuits(circuits).maps] == ["base", "sft/0", "sft/1", "grpo"]


def test_the_ways_are_reward_against_retention(circuits: dict[str, Any]) -> None:
    plot = circuit_plots(parse_circuits(circuits))[6]
    for trace, way in zip(plot.views[0]["data"], circuits["trajectories"].values(), strict=True):
        assert trace["x"] == [step["reward"] for step in way["checkpoints"]]
        kept = [step["kept"]["measures"]["retention"]["value"] for step in way["checkpoints"]]
        assert trace["y"] == kept
        assert kept[0] == 1
        assert len(kept) == 1 + STEPS


def test_a_way_without_rewards_is_no_curve(circuits: dict[str, Any]) -> None:
    for step in circuits["trajectories"]["sft"]["checkpoints"]:
        step["reward"] = None
    plots = circuit_plots(parse_circuits(circuits))
    assert [trace["name"] for trace in plots[6].views[0]["data"]] == ["grpo"]
    for step in circuits["trajectories"]["grpo"]["checkpoints"]:
        step["reward"] = None
    assert len(circuit_plots(parse_circuits(circuits))) == 6


def test_the_table_holds_every_number(results: dict[str, Any], circuits: dict[str, Any]) -> None:
    cells = page_of(results, circuits=circuits).texts("td")
    for name in ("sft", "grpo"):
        one = retention_of(circuits, name)
        wanted = [f"{one['value']:.0%}", f"{one['at_halves']['mean']:.0%}", f"{one['ceiling']['mean']:.0%}"]
        wanted += [f"{one['p_chance']['value']:.3f}", f"{one['p_prompts']['value']:.3f}"]
        wanted.append(f"{one['chance']:.0%} ({one['null']['low']:.0%} to {one['null']['high']:.0%})")
        assert set(wanted) <= set(cells)
    assert str(SIZE) in cells


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize("part", [None, "trajectories", "kept", "tuned"])
def test_plotly_takes_every_figure(
    results: dict[str, Any], circuits: dict[str, Any], theme: dict[str, str], part: str | None
) -> None:
    if part is not None:
        (circuits if part in circuits else circuits["comparison"])[part] = {}
    for views in coloured(page_of(results, circuits=circuits).figures, theme).values():
        for view in views:
            go.Figure(view)


def test_a_large_model_is_drawn_without_numbers_in_its_cells(circuits: dict[str, Any]) -> None:
    for one in models(circuits).values():
        one |= {"scores": [[0.5] * 64] * 80, "mask": [[True] * 64] * 80}
    plot = circuit_plots(parse_circuits(circuits))[0]
    heat = plot.views[0]["data"][0]
    assert heat["texttemplate"] == ""
    assert plot.height == 900
    assert len(plot.views[0]["layout"]["xaxis"]["tickvals"]) <= 24


def test_text_is_never_markup(results: dict[str, Any], circuits: dict[str, Any]) -> None:
    evil = {**hostile(circuits), "format": circuits["format"]}
    safe, page = page_of(results, circuits=circuits), page_of(results, circuits=evil)
    assert {name for name, _, _ in page.elements} == {name for name, _, _ in safe.elements}
    assert any(HOSTILE in text for text in page.texts("th"))
    allowed = {text for text in strings(safe.figures) if "<" in text}
    assert {text for text in strings(page.figures) if "<" in text} == allowed


def test_a_run_without_the_file_has_none(tmp_path: Path) -> None:
    assert read_circuits(tmp_path) is None


@pytest.mark.parametrize("text", ["", "{", "\x00", "[" * 100_000, "\xff"])
def test_a_file_that_is_no_json_is_refused(run: Path, text: str, tmp_path: Path) -> None:
    (run / CIRCUITS_FILE).write_text(text, encoding="latin-1")
    with pytest.raises(ReportError, match=r"circuits\.json: expected a readable JSON file.*circuits compare"):
        write_report(run, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize(
    ("change", "found"),
    [({"format": "rlforget-demo"}, "'rlforget-demo'"), ({"version": 2}, "version 2"), ({"version": True}, "True")],
)
def test_another_format_or_version_is_refused(circuits: dict[str, Any], change: dict[str, Any], found: str) -> None:
    with pytest.raises(ReportError, match="format rlforget-circuits, version 1") as caught:
        parse_circuits({**circuits, **change})
    assert found in caught.value.found


@pytest.mark.parametrize(
    ("way", "value", "expected"),
    [
        (("base", "scores"), [], "base.scores: expected a table of heads"),
        (("base", "scores", 1), [1.0], "base.scores: expected a table of heads, as many in every layer; found rows of"),
        (("base", "mask", 0, 0), 1, "base.mask[0][0]: expected true or false"),
        (("base", "mask"), [[True]], "base.mask: expected a flag for every score"),
        (("base", "metric"), "clean", "base.metric: expected an object"),
        (("tuned", "sft", 0, "scores", 2, 1), "1", "tuned.sft[0].scores[2][1]: expected a number"),
        (("kept", "grpo", "measures", "retention"), None, "kept.grpo.measures: expected an object with the key 'ret"),
        (("kept", "sft", "sizes", 0, "size"), -1, "kept.sft.sizes[0].size: expected an integer of at least 0"),
        (("kept", "sft", "measures", "retention", "interval"), 1, "retention.interval: expected an object"),
        (("kept",), [], "kept: expected an object"),
    ],
)
def test_damage_is_named_by_its_place(
    circuits: dict[str, Any], way: tuple[str | int, ...], value: Any, expected: str
) -> None:
    _put(circuits["comparison"], way, value)
    with pytest.raises(ReportError) as caught:
        parse_circuits(circuits, "runs/demo/circuits.json")
    assert str(caught.value).startswith("runs/demo/circuits.json: comparison.")
    assert expected in str(caught.value)


def test_another_shape_than_the_base_and_a_name_that_comes_twice_are_refused(circuits: dict[str, Any]) -> None:
    twice = copy.deepcopy(circuits)
    twice["comparison"]["tuned"]["base"] = twice["comparison"]["tuned"]["sft"]
    with pytest.raises(ReportError, match=r"tuned: expected a name of its own .*; found base, sft, grpo, base"):
        parse_circuits(twice)
    models(circuits)["sft"] |= {"scores": [[1.0]], "mask": [[True]]}
    with pytest.raises(ReportError, match=r"tuned\.sft\[0\]\.scores: expected as many layers and heads as the base"):
        parse_circuits(circuits)


@pytest.mark.parametrize("value", [None, math.nan, math.inf, 10**400])
def test_a_number_that_could_not_be_told_is_a_dash(
    results: dict[str, Any], circuits: dict[str, Any], value: Any
) -> None:
    for name in ("sft", "grpo"):
        retention_of(circuits, name).update(value=value, chance=value, interval=None, p_chance={"value": value})
    models(circuits)["base"]["scores"][0][0] = value
    page = page_of(results, circuits=json.loads(json.dumps(circuits)))
    assert "–" in page.texts("td")
    everything = page.texts("td") + page.texts("figcaption")
    assert not [text for text in everything if "nan" in text or "inf" in text]
    assert page.figures["circuits-0"][0]["data"][0]["z"][0][0] is None


@settings(max_examples=100)
@given(st.data())
def test_anything_becomes_a_page_or_a_named_error(made: str, data: st.DataObject) -> None:
    circuits = copy.deepcopy(made_circuits())
    ways = _ways(circuits)
    for _ in range(data.draw(st.integers(1, 3), "changes")):
        way = data.draw(st.sampled_from(ways), "where")
        with suppress(KeyError, IndexError, TypeError):
            _put(circuits, way, data.draw(JUNK, "what"))
    try:
        page = page_of(json.loads(made), circuits=circuits)
    except ReportError:
        return
    assert "circuits" in sections_of(page)


def test_vulnerable_heads_stand_beside_those_of_the_other_way_round(circuits: dict[str, Any]) -> None:
    page = page_of({**_no_stages(), "runs": [{"seed": 0}]}, circuits=circuits)
    told = circuits["comparison"]["differences"][0]["vulnerable"]
    ours, theirs = page.figures["vulnerable-0"][0]["data"]
    assert (ours["x"], ours["y"]) == ([one["delta"] for one in told], [one["count"] for one in told])
    assert theirs["y"] == [one["reverse"] for one in told]
    shown = next(one for one in told if one["delta"] > 0 and one["count"])
    finding = next(text for text in page.texts("figcaption") if text.startswith("At δ = "))
    assert f"{shown['count']} heads that grpo kept were lost by sft, and {shown['reverse']} the other way" in finding
    assert ", ".join(f"{layer}:{head}" for layer, head in told[0]["heads"]) in page.texts("td")
    assert any("Changed weights: heads that sft broke" in text for text in page.texts("summary"))
    assert "25.0%" in page.texts("td")


def test_one_fine_tune_has_no_vulnerable_heads_and_one_line_says_so(circuits: dict[str, Any]) -> None:
    circuits["comparison"]["differences"] = []
    page = page_of({**_no_stages(), "runs": [{"seed": 0}]}, circuits=circuits)
    assert "vulnerable-0" not in page.figures
    assert [text for text in page.texts("p") if text.startswith("No vulnerable heads")]


def _no_stages() -> dict[str, Any]:
    return {"format": "rlforget-demo", "version": 1}
