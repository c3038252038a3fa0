"""The page: whole, in one file, safe to open, and told only from what the run holds."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from rlforget.errors import MissingExtraError, OutputError
from rlforget.report import write_report
from rlforget.report.document import embedded
from tests.report.made_results import made_results
from tests.report.pages import Page, page_of

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"' onload='alert(3)' ${x} {{y}} &lt;b&gt;"
SECTIONS = ["rewards", "repairs", "places", "steps", "overlaps", "comparison", "origin"]


def sections_of(page: Page) -> list[str | None]:
    return [given["id"] for name, given, _ in page.elements if name == "section"]


def test_one_file_holds_everything(run: Path, tmp_path: Path) -> None:
    out = write_report(run, tmp_path / "page.html")
    assert out == tmp_path / "page.html"
    text = out.read_text(encoding="utf-8")
    assert out.stat().st_size <= 6 * 2**20
    page = Page(text)
    assert sections_of(page) == SECTIONS
    library = [script for script in page.texts("script") if "plotly.js v" in script[:200]]
    assert len(library) == 1
    fetching = {"src", "href", "data", "poster", "srcset", "action", "formaction", "background"}
    assert not [given for _, given, _ in page.elements if fetching & given.keys()]
    style = page.texts("style")[0]
    assert "url(" not in style
    assert "@import" not in style


def test_policy_forbids_the_network_and_all_scripts_but_ours(run: Path, tmp_path: Path) -> None:
    page = Page(write_report(run, tmp_path / "page.html").read_text(encoding="utf-8"))
    policy = next(given["content"] for name, given, _ in page.elements if "http-equiv" in given)
    assert policy is not None
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert "connect-src" not in rules
    scripts = ["".join(text) for name, given, text in page.elements if name == "script" and not given]
    hashes = {f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts}
    assert set(rules["script-src"].split()) == hashes
    assert len(hashes) == 2
    # What stands before the policy in the head would not be under it.
    assert [name for name, _, _ in page.elements][:4] == ["html", "head", "meta", "meta"]


def test_every_plot_has_a_place_a_title_and_a_table(results: dict[str, Any]) -> None:
    page = page_of(results)
    plots = {given["id"]: given for name, given, _ in page.elements if given.get("class") == "plot"}
    assert plots.keys() == page.figures.keys()
    titles = page.texts("figcaption")
    assert [given["aria-label"] for given in plots.values()] == titles
    assert all(re.search(r"\d", title) for title in titles)
    assert len(page.texts("table")) == len(SECTIONS) + 2  # steps and origin have two
    choices = [given for name, given, _ in page.elements if name == "option"]
    assert {len(views) for views in page.figures.values()} == {1, 2, 3}
    assert len(choices) == 2 + 3


def test_every_plot_says_how_to_read_it_over_what_and_in_which_units(results: dict[str, Any]) -> None:
    page = page_of(results)
    readings = {given["id"]: "".join(text) for name, given, text in page.elements if given.get("class") == "reading"}
    plots = [given for _, given, _ in page.elements if given.get("class") == "plot"]
    assert [given["aria-describedby"] for given in plots] == list(readings)
    for reading in readings.values():
        assert re.search(r"n = \d+ (evaluation prompts|completions) a domain|n: every coordinate", reading)
        assert "mean of the seeds 0 and 1." in reading
        assert 30 < len(reading) < 260
    names = {"x", "y"}
    for key, views in page.figures.items():
        for view in views:
            axes = [view["layout"][f"{axis}axis"] for axis in names]
            assert all("title" in axis or axis.get("ticktext") for axis in axes), key
    assert all(given["tabindex"] == "0" for given in plots)


def test_every_number_of_a_table_stands_there_in_full(results: dict[str, Any]) -> None:
    page = page_of(results)
    values = {given["data-values"] for name, given, _ in page.elements if name == "td" and "data-values" in given}
    for place, stage in enumerate(results["runs"][0]["stages"]):
        for domain in stage["rewards"]:
            both = [run["stages"][place]["rewards"][domain] for run in results["runs"]]
            assert f"{fmean(both)!r} {min(both)!r} {max(both)!r}" in values


def test_each_domain_has_a_line_from_its_first_to_its_last_reward(results: dict[str, Any]) -> None:
    page = page_of(results)
    assert page.texts("dt") == ["code", "math", "qa", "writing"]
    lines = [given["points"] for name, given, _ in page.elements if name == "polyline"]
    assert len(lines) == 4
    for line, domain in zip(lines, page.texts("dt"), strict=True):
        assert line is not None
        heights = [float(point.split(",")[1]) for point in line.split()]
        rewards = [fmean(run["stages"][place]["rewards"][domain] for run in results["runs"]) for place in range(5)]
        order = sorted(range(5), key=lambda place: rewards[place])
        assert [heights[place] for place in order] == sorted(heights, reverse=True)
        assert f"{rewards[0]:.2f} → {rewards[-1]:.2f}" in page.texts("dd")


def test_the_page_tells_five_things_and_how_it_came_about(results: dict[str, Any]) -> None:
    results["runs"][1]["base_weights"] = "0123abcd"
    page = page_of(results, Path("my runs/demo"))
    assert len(page.texts("li")) == 5
    assert page.texts("pre") == [
        "rlforget demo --seed 0 --seed 1 --out 'my runs/demo'\nrlforget report 'my runs/demo'",
    ]
    cells = page.texts("td")
    assert "fingerprint of the base's weights, seed 1" in page.texts("th")
    for value in (
        "0123abcd",
        *results["versions"].values(),
        results["machine"],
        "0, 1",
        json.dumps(results["settings"]["steps"]),
    ):
        assert value in cells


def test_every_stage_has_its_fingerprint_and_its_settings(results: dict[str, Any]) -> None:
    page = page_of(results)
    cells = page.texts("td")
    for one in results["runs"]:
        for stage in one["stages"]:
            assert stage["weights"] in cells
    assert "method grpo, steps 30" in cells


def test_a_run_by_another_command_names_that(results: dict[str, Any]) -> None:
    results["command"] = "rlforget sequence mine.yaml"
    assert page_of(results).texts("pre")[0].startswith("rlforget sequence mine.yaml\nrlforget report ")


def hostile(value: Any) -> Any:
    """The same JSON with a script in every text and in every key that is a name."""
    names = {"code", "math", "qa", "writing", "float32", "bfloat16", "torch", "learning_rate"}
    if isinstance(value, dict):
        renamed = {f"{key}{HOSTILE}" if key in names or "." in key else key: item for key, item in value.items()}
        return {key: item if key == "format" else hostile(item) for key, item in renamed.items()}
    if isinstance(value, list):
        return [hostile(item) for item in value]
    return f"{value}{HOSTILE}" if isinstance(value, str) else value


def test_text_is_never_markup(results: dict[str, Any]) -> None:
    safe, page = page_of(results), page_of(hostile(results), Path(HOSTILE))
    assert [name for name, _, _ in page.elements if name == "script"] == ["script"] * 3
    assert {name for name, _, _ in page.elements} == {name for name, _, _ in safe.elements}
    known = {attribute for _, given, _ in safe.elements for attribute in given}
    assert {attribute for _, given, _ in page.elements for attribute in given} == known
    assert any(HOSTILE in text for text in page.texts("li"))
    assert any(HOSTILE in text for text in page.texts("th"))
    assert any(HOSTILE in text for text in page.texts("td"))


def test_data_cannot_end_the_element_it_stands_in() -> None:
    """The labels are escaped already; this holds without them."""
    figures = {"a": [{"text": "</script><!--<script>&\u2028"}]}
    written = embedded(figures)
    assert not set(written) & set("<>&\u2028")
    assert json.loads(written) == figures


def strings(value: Any) -> list[str]:
    """Every text in some JSON."""
    if isinstance(value, dict):
        return [text for item in value.values() for text in strings(item)]
    if isinstance(value, list):
        return [text for item in value for text in strings(item)]
    return [value] if isinstance(value, str) else []


def test_text_is_never_markup_in_a_plot(results: dict[str, Any]) -> None:
    """Plotly reads <b>, <br> and <a> in its labels; ours are in hover templates alone."""
    ours = re.compile(r"</?b>|<br>|<extra></extra>")
    for text in strings(page_of(hostile(results)).figures):
        assert "<" not in ours.sub("", text)
        assert "<" not in text or text.endswith("<extra></extra>")
        assert "alert" not in text or "<" not in text


@pytest.mark.parametrize(
    ("part", "section", "left"),
    [("overlaps", "overlaps", 5), ("repairs", "repairs", 3), ("sft_and_rl", "comparison", 5), ("stages", "rewards", 2)],
)
def test_a_missing_part_is_left_out_with_one_line(results: dict[str, Any], part: str, section: str, left: int) -> None:
    whole = page_of(results)
    for run in results["runs"]:
        del run[part]
    page = page_of(results)
    gone = {section, "places", "steps"} if part == "stages" else {section}
    assert sections_of(page) == [name for name in SECTIONS if name not in gone]
    lines = [text for text in page.texts("p") if "left out" in text]
    assert len(lines) == 1
    headings = set(whole.texts("h2")) - set(page.texts("h2"))
    assert len(headings) == len(gone)
    assert all(heading in lines[0] for heading in headings)
    assert len(page.texts("li")) == left


def test_a_part_that_one_seed_lacks_is_shown_for_the_others(results: dict[str, Any]) -> None:
    for part in ("overlaps", "repairs", "sft_and_rl"):
        del results["runs"][0][part]
    for stage in results["runs"][0]["stages"]:
        stage.pop("delta", None)
    page = page_of(results)
    assert sections_of(page) == SECTIONS
    alone = page_of({**results, "runs": results["runs"][1:]})
    assert page.texts("figcaption")[1:] == alone.texts("figcaption")[1:]


def test_bare_results_make_a_page(results: dict[str, Any]) -> None:
    page = page_of({"format": "rlforget-demo", "version": 1, "runs": [{"seed": 7}]})
    assert sections_of(page) == ["origin"]
    assert page.figures == {}


def test_one_seed_says_that_it_is_one() -> None:
    page = page_of(made_results(seeds=1))
    assert any("One seed" in text for text in page.texts("p"))
    assert not [text for text in page.texts("td") if " to " in text]


def test_nothing_is_overwritten_without_force(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    out.write_text("precious")
    with pytest.raises(OutputError, match="existing"):
        write_report(run, out)
    assert out.read_text() == "precious"
    write_report(run, out, force=True)
    assert out.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_a_place_that_cannot_be_written_is_named(run: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="Create it first"):
        write_report(run, tmp_path / "none" / "page.html")
    with pytest.raises(OutputError):
        write_report(run, run, force=True)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["results.json", "run"]


def test_without_plotly_the_extra_is_named(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(MissingExtraError, match=r"rlforget\[report\]"):
        write_report(run, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_text_that_utf8_cannot_hold_does_not_stop_the_page(run: Path, tmp_path: Path, results: dict[str, Any]) -> None:
    results["machine"] = "half a character: \ud800"
    (run / "results.json").write_text(json.dumps(results))
    write_report(run, tmp_path / "page.html")
    assert "half a character: ?" in (tmp_path / "page.html").read_text(encoding="utf-8")
