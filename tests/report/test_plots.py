"""The plots: figures that plotly takes, with the results' numbers in them, in colours that all can tell apart."""

from __future__ import annotations

import itertools
import json
import re
from importlib.resources import files
from statistics import fmean
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlforget.report import drawing, plots
from rlforget.report.over_seeds import SPARSITIES, over_seeds
from rlforget.report.results import parse_results
from tests.report.pages import page_of

STYLE = files("rlforget.report").joinpath("page.css").read_text(encoding="utf-8")
LIGHT, DARK = (
    dict(re.findall(r"--([\w-]+): (#\w{6});", block)) for block in re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)
)


def coloured(figures: Any, theme: dict[str, str]) -> Any:
    """The figures as page.js draws them; a role that the style sheet lacks is a KeyError."""
    return json.loads(re.sub(r"var\(--([\w-]+)\)", lambda role: theme[role[1]], json.dumps(figures)))


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_plotly_takes_every_figure(results: dict[str, Any], theme: dict[str, str]) -> None:
    for views in coloured(page_of(results).figures, theme).values():
        for view in views:
            go.Figure(view)  # raises on a property or a value that plotly does not know


def test_rewards_are_means_with_a_thin_line_for_each_seed(results: dict[str, Any]) -> None:
    plot = plots.rewards_plot(over_seeds(parse_results(results)))
    traces = plot.views[0]["data"]
    for domain in ("code", "math", "qa", "writing"):
        mean = next(trace for trace in traces if trace.get("name") == domain)
        by_seed = [[stage["rewards"][domain] for stage in run["stages"]] for run in results["runs"]]
        assert mean["y"] == pytest.approx([fmean(values) for values in zip(*by_seed, strict=True)])
        assert [trace["y"] for trace in traces if trace["line"]["color"] == mean["line"]["color"]][:2] == by_seed
        sizes = mean["marker"]["size"]
        assert sizes.index(max(sizes)) == [stage["name"] for stage in results["runs"][0]["stages"]].index(domain)


def test_the_rewards_of_one_seed_have_their_errors_over_prompts(results: dict[str, Any]) -> None:
    results["runs"] = results["runs"][:1]
    for place, stage in enumerate(results["runs"][0]["stages"]):
        stage["stderr"] = {"math": 0.01 * place}
    found = over_seeds(parse_results(results))
    traces = {trace["name"]: trace for trace in plots.rewards_plot(found).views[0]["data"]}
    assert traces["math"]["error_y"]["array"] == pytest.approx([0, 0.01, 0.02, 0.03, 0.04])
    assert "error_y" not in traces["code"]


def test_the_repairs_of_one_seed_have_their_errors_over_prompts(results: dict[str, Any]) -> None:
    over_both = plots.repairs_plot(over_seeds(parse_results(results)))
    assert not any("error_x" in trace for trace in over_both.views[0]["data"])
    results["runs"] = results["runs"][:1]
    for repair in results["runs"][0]["repairs"]:
        if repair["rule"] == "random":
            repair["kept_stderr"] = repair["regained_stderr"] = None
    plot = plots.repairs_plot(over_seeds(parse_results(results)))
    traces = {trace["name"]: trace for trace in plot.views[0]["data"]}
    assert traces["fisher"]["error_x"]["array"] == [0.02] * 3
    assert traces["fisher"]["error_y"]["array"] == [0.03] * 3
    assert "± 3%" in traces["fisher"]["customdata"][0][2]
    assert "error_x" not in traces["random"]
    assert plot.reading.endswith("Whiskers: one standard error over prompts.")


def test_every_repair_and_every_seed_has_its_point(results: dict[str, Any]) -> None:
    view = plots.repairs_plot(over_seeds(parse_results(results))).views[0]
    traces = view["data"]
    points = {(x, y) for trace in traces for x, y in zip(trace["x"], trace["y"], strict=True)}
    for position in range(len(results["runs"][0]["repairs"])):
        both = [(run["repairs"][position]["kept"], run["repairs"][position]["regained"]) for run in results["runs"]]
        assert points.issuperset(both)
        assert (fmean(x for x, _ in both), fmean(y for _, y in both)) in points
    texts = [one["text"] for one in view["layout"]["annotations"]]
    assert "dense subspace" in texts
    assert "refresh" in texts
    assert len(texts) == 4


def test_names_of_repairs_stand_apart_and_what_lies_far_below_is_told_at_the_edge(results: dict[str, Any]) -> None:
    for run in results["runs"]:
        for repair in run["repairs"]:
            repair["regained"] = -1.09 if repair["rule"] == "taylor" else 0.9
    layout = plots.repairs_plot(over_seeds(parse_results(results))).views[0]["layout"]
    names = [one for one in layout["annotations"] if "ay" in one]
    heights = [one["ay"] for one in names]  # downwards, from one and the same height
    assert all(below - above >= 16 for above, below in itertools.pairwise(heights))
    (edge,) = (one for one in layout["annotations"] if "ay" not in one)
    assert edge["text"].startswith("↓ taylor 5%: −109% regained")
    low, high = layout["yaxis"]["range"]
    assert -0.25 < low < 0.0
    assert high > 1.0


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=12))
def test_the_front_is_what_nothing_beats_in_both(points: list[tuple[int, int]]) -> None:
    repairs = [
        {"rule": "fisher", "fraction": 0.01 * i, "rewards": {}, "kept": kept, "regained": regained}
        for i, (kept, regained) in enumerate(points)
    ]
    raw = {"format": "rlforget-demo", "version": 1, "runs": [{"seed": 0, "repairs": repairs}]}
    front = plots.repairs_plot(over_seeds(parse_results(raw))).views[0]["data"][-1]
    found = set(zip(front["x"], front["y"], strict=True))
    assert found <= set(points)
    assert front["x"] == sorted(front["x"])
    for kept, regained in points:
        beaten = any(k >= kept and r >= regained and (k, r) != (kept, regained) for k, r in points)
        assert ((kept, regained) in found) == (not beaten)


def test_maps_hold_every_place_on_one_scale(results: dict[str, Any]) -> None:
    maps = plots.place_plots(over_seeds(parse_results(results)))
    assert len(maps) == 4
    for view in range(len(plots.PLACE_CHOICES)):
        assert len({plot.views[view]["data"][0]["zmax"] for plot in maps}) == 1
    norms = maps[1].views[0]
    column = norms["layout"]["xaxis"]["ticktext"].index("q_proj")
    row = norms["layout"]["yaxis"]["ticktext"].index("layer 3")
    name = "model.layers.3.self_attn.q_proj.weight"
    tensors = [run["stages"][2]["delta"]["tensors"][name] for run in results["runs"]]
    assert norms["data"][0]["z"][row][column] == pytest.approx(fmean(tensor["l2"] for tensor in tensors))
    outside = norms["layout"]["yaxis"]["ticktext"].index("elsewhere")
    assert norms["data"][0]["z"][outside][column] is None
    share = maps[1].views[2]["data"][0]["z"][row][column]
    assert share == pytest.approx(fmean(tensor["changed"] / tensor["numel"] for tensor in tensors))
    changed = fmean(tensor["changed"] for tensor in tensors)
    for view in maps[1].views:
        told = view["data"][0]["customdata"][row][column]
        assert told[0] == f"{name}: {changed:.0f} of {tensors[0]['numel']} changed"
        assert "%{customdata[0]}" in view["data"][0]["hovertemplate"]


def test_steps_are_shares_of_what_changed(results: dict[str, Any]) -> None:
    sparsity, steps = plots.step_plots(over_seeds(parse_results(results)))
    deltas = [[stage["delta"]["total"] for stage in run["stages"][1:]] for run in results["runs"]]
    for trace, key in zip(sparsity.views[0]["data"], SPARSITIES, strict=True):
        assert trace["y"] == pytest.approx([fmean(d[key] for d in stage) for stage in zip(*deltas, strict=True)])
    for place, trace in enumerate(steps.views[0]["data"]):
        assert sum(trace["y"]) == pytest.approx(1)
        for number, share in enumerate(trace["y"]):
            wanted = [run[place]["steps"] for run in deltas]
            assert share == pytest.approx(fmean(([*s, *[0] * 65][number]) / sum(s) for s in wanted))


def test_a_run_that_tells_no_steps_has_no_histogram(results: dict[str, Any]) -> None:
    for run in results["runs"]:
        for stage in run["stages"][1:]:
            del stage["delta"]["total"]["steps"]
    assert len(plots.step_plots(over_seeds(parse_results(results)))) == 1
    assert len([key for key in page_of(results).figures if key.startswith("steps")]) == 1


def test_overlap_stands_beside_chance(results: dict[str, Any]) -> None:
    plot = plots.overlap_plot(over_seeds(parse_results(results)))
    for view, key in zip(plot.views, ("coordinates", "neurons"), strict=True):
        for name, figure in (("measured", "jaccard"), ("by chance", "jaccard_by_chance")):
            trace = next(trace for trace in view["data"] if trace.get("name") == name)
            pairs = zip(*(run["overlaps"] for run in results["runs"]), strict=True)
            assert trace["x"] == pytest.approx([fmean(one[key][figure] for one in pair) for pair in pairs])
    assert plot.views[0]["layout"]["yaxis"]["ticktext"][0] == "code, math"


def test_names_that_look_like_numbers_or_repeat_stay_apart(results: dict[str, Any]) -> None:
    """Positions, not names, are the coordinates: plotly would make dates and numbers of some names."""
    text = json.dumps(results).replace('"qa"', '"2024-01-01"').replace('"writing"', '"7"')
    for views in page_of(json.loads(text)).figures.values():
        for view in views:
            for trace in view["data"]:
                assert not any(isinstance(value, str) for value in (*trace.get("x", ()), *trace.get("y", ())))


def luminance(colour: str) -> float:
    return float(linear(colour) @ [0.2126, 0.7152, 0.0722])


def linear(colour: str) -> np.ndarray:
    """sRGB of `#rrggbb` in linear light."""
    values = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(light: np.ndarray) -> np.ndarray:
    """CIE 1976 L*a*b* of linear sRGB."""
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = to_xyz @ np.clip(light, 0, 1) / [0.9505, 1.0, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


# Full protanopia, deuteranopia and tritanopia: Machado, Oliveira and Fernandes, 2009.
EYES = {
    "normal": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize("eyes", EYES)
def test_colours_stay_apart_for_all_eyes(theme: dict[str, str], eyes: str) -> None:
    seen = {name: lab(np.array(EYES[eyes]) @ linear(theme[name])) for name in ("c1", "c2", "c3", "c4", "c5", "c6")}
    for first, second in itertools.combinations(seen, 2):
        apart = 20 if {first, second} <= {"c1", "c2", "c3", "c4"} else 12  # ΔE*; the last two are rarely needed
        assert np.linalg.norm(seen[first] - seen[second]) > apart, (first, second)


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_contrast_meets_wcag(theme: dict[str, str]) -> None:
    least = {"ink": 7, "muted": 4.5, "link": 4.5} | {f"c{position}": 3 for position in range(1, 7)}
    for name, wanted in least.items():
        high, low = sorted((luminance(theme[name]), luminance(theme["paper"])), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= wanted, name


def test_the_picture_has_the_colours_of_the_page() -> None:
    assert list(drawing.COLOURS) == [LIGHT[f"c{position}"] for position in range(1, 7)]
