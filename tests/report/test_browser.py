"""The page in a real browser: opened from disk, drawn, switched, pointed at, sorted, saved, in the dark, on paper."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from rlforget.report import write_report
from rlforget.report.document import embedded
from rlforget.report.plots import PLACE_CHOICES
from tests.report.made_circuits import made_circuits
from tests.report.made_history import made_history
from tests.report.made_measurements import made_conflict, made_damage
from tests.report.made_results import made_results
from tests.report.test_page import hostile

pytestmark = pytest.mark.browser

CHROMIUM = os.environ.get("RLFORGET_CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)

PATIENCE = 120_000  # milliseconds: all cores may be busy with other tests


@dataclass
class Opened:
    """A page that is open, with all that it said and asked for."""

    page: Any
    figures: dict[str, list[dict[str, Any]]]
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install 'rlforget[test]'")
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt-get install chromium, or its path in RLFORGET_CHROMIUM")
    with api.sync_playwright() as playwright:
        # Its sandbox needs namespaces, which containers and root may lack; the page is our own file.
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


def opened(browser: Any, results: dict[str, Any], circuits: dict[str, Any], folder: Path) -> Opened:
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "circuits.json").write_text(json.dumps(circuits))
    (folder / "damage.json").write_text(json.dumps(made_damage()))
    (folder / "conflict.json").write_text(json.dumps(made_conflict()))
    return drawn(browser, write_report(folder, folder / "report.html"))


def drawn(browser: Any, file: Path) -> Opened:
    """Open a page, and wait until all of its plots are drawn."""
    page = browser.new_context(viewport={"width": 1440, "height": 900}, accept_downloads=True).new_page()
    page.set_default_timeout(PATIENCE)
    found = Opened(page, {})
    page.on("console", lambda message: found.said.append(message.text))
    page.on("pageerror", lambda error: found.said.append(str(error)))
    page.on("dialog", lambda dialog: (found.said.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: found.asked.append(request.url))
    page.goto(file.as_uri())
    until(page, "() => [...document.querySelectorAll('.plot')].every(plot => plot.querySelector('.main-svg'))")
    found.figures = json.loads(page.locator("#figures").text_content())
    return found


def until(page: Any, condition: str, arg: Any = None) -> None:
    """Wait for a condition; the page's policy forbids what playwright's own waiting evaluates."""
    while not page.evaluate(condition, arg):  # pytest's own time limit ends it
        page.wait_for_timeout(20)


@pytest.fixture(scope="module")
def report(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Opened:
    return opened(browser, made_results(seeds=2), made_circuits(), tmp_path_factory.mktemp("run"))


@pytest.fixture
def page(report: Opened) -> Iterator[Any]:
    """The page as it is on a desk, in the light."""
    yield report.page
    report.page.emulate_media(media="screen", color_scheme="light")
    report.page.set_viewport_size({"width": 1440, "height": 900})


def test_it_opens_from_disk_without_a_word_and_asks_for_nothing(report: Opened) -> None:
    report.page.wait_for_load_state("networkidle")
    assert report.said == []
    assert [url.split("/")[-1] for url in report.asked] == ["report.html"]


def test_every_plot_is_there_with_its_data(report: Opened) -> None:
    drawn = report.page.eval_on_selector_all(
        ".plot",
        """plots => plots.map(plot => ({
            id: plot.id,
            traces: plot.calcdata.length,
            marks: plot.querySelectorAll('.point, .points path, .js-line, .hm, image').length,
            box: plot.querySelector('.main-svg').getBoundingClientRect().width,
            titles: [...plot.querySelectorAll('.xtitle, .ytitle')].map(title => title.textContent),
        }))""",
    )
    assert {one["id"] for one in drawn} == report.figures.keys()
    for one in drawn:
        view = report.figures[one["id"]][0]
        assert one["traces"] == len(view["data"])
        assert one["marks"] > 0, one["id"]
        assert one["box"] > 400
        wanted = {
            view["layout"][axis]["title"]["text"] for axis in ("xaxis", "yaxis") if "title" in view["layout"][axis]
        }
        assert set(one["titles"]) == wanted


def test_a_choice_switches_every_map_of_its_section(report: Opened, page: Any) -> None:
    maps = [key for key in report.figures if key.startswith("places-")]
    for position, choice in enumerate(PLACE_CHOICES):
        page.select_option("#places select", label=choice)
        for key in maps:
            shown = page.evaluate("key => document.getElementById(key).data[0].z", key)
            assert shown == report.figures[key][position]["data"][0]["z"]
    page.select_option("#places select", index=0)


def test_pointing_at_a_cell_names_its_tensors_and_counts_them(page: Any) -> None:
    plot = page.locator("#places-0")
    plot.scroll_into_view_if_needed()
    box = plot.locator(".plotbg, .bg").first.bounding_box() or plot.bounding_box()
    page.mouse.move(box["x"] + 0.05 * box["width"], box["y"] + 0.1 * box["height"])
    told = plot.locator(".hovertext").text_content()
    assert "model.layers.0.self_attn.q_proj.weight" in told
    assert " of 256 changed" in told
    page.mouse.move(0, 0)


def test_the_keyboard_reaches_the_plots_and_walks_along_their_points(page: Any) -> None:
    from playwright.sync_api import expect

    page.locator("#rewards-0").focus()
    for key, told in (("ArrowRight", "base"), ("ArrowRight", "code"), ("ArrowLeft", "base")):
        page.keyboard.press(key)
        expect(page.locator("#rewards-0 .hovertext")).to_contain_text(f"code after {told}")  # once drawn
    page.keyboard.press("Escape")
    assert page.locator("#rewards-0 .hovertext").count() == 0


def shown_column(page: Any, section: str, column: int) -> list[str]:
    return page.locator(f"#{section} tbody tr :nth-child({column})").all_inner_texts()


def test_a_table_is_sorted_by_its_heads_also_by_the_keyboard(page: Any) -> None:
    page.locator("#repairs summary").click()
    head = page.locator("#repairs thead th").nth(3)
    assert head.inner_text().startswith("regained")
    ways = []
    for press in (lambda: head.locator("button").click(), lambda: page.keyboard.press("Enter")):
        press()
        cells = page.locator("#repairs tbody tr > :nth-child(4)")
        values = [float(text.split()[0]) for text in cells.evaluate_all("cells => cells.map(c => c.dataset.values)")]
        ways.append((head.get_attribute("aria-sort"), values))
    assert [way for way, _ in ways] == ["ascending", "descending"]
    assert ways[0][1] == sorted(ways[0][1])
    assert ways[1][1] == sorted(ways[1][1], reverse=True)
    page.locator("#repairs thead th button").first.click()
    names = shown_column(page, "repairs", 1)
    assert names == sorted(names, key=str.casefold)
    assert page.locator("#repairs [aria-sort]").count() == 1
    page.locator("#repairs summary").click()


def saved(page: Any, section: str, folder: Path) -> list[dict[str, str]]:
    page.locator(f"#{section} summary").first.click()
    with page.expect_download() as download:
        page.locator(f"#{section} .csv").first.click()
    page.locator(f"#{section} summary").first.click()
    file = folder / download.value.suggested_filename
    download.value.save_as(file)
    with file.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def test_a_table_is_saved_with_every_number_in_full(page: Any, tmp_path: Path) -> None:
    rows = saved(page, "rewards", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["rlforget-rewards.csv"]
    runs = made_results(seeds=2)["runs"]
    assert [row["after"] for row in rows] == [stage["name"] for stage in runs[0]["stages"]]
    for place, row in enumerate(rows):
        for domain in ("code", "math", "qa", "writing"):
            values = [run["stages"][place]["rewards"][domain] for run in runs]
            found = [float(row[name]) for name in (domain, f"{domain}, lowest", f"{domain}, highest")]
            assert found == [pytest.approx(sum(values) / 2), min(values), max(values)]


def test_it_is_dark_where_the_reader_wants_it_dark_and_light_on_paper(page: Any) -> None:
    def colours() -> tuple[str, str, str]:
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        line = page.evaluate("document.getElementById('rewards-0').data.find(t => t.name === 'code').line.color")
        ink = page.evaluate("document.getElementById('rewards-0').layout.font.color")
        return paper, line, ink

    light = colours()
    page.emulate_media(color_scheme="dark")
    dark = colours()
    assert all(one != other for one, other in zip(light, dark, strict=True))
    page.emulate_media(media="print", color_scheme="dark")
    assert colours()[0] == light[0]
    assert colours()[1:] == light[1:]


@pytest.mark.parametrize("width", [390, 768])
def test_nothing_is_wider_than_the_window(page: Any, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 844})
    svgs = "[...document.querySelectorAll('.main-svg')]"
    until(page, f"width => {svgs}.every(svg => svg.getBoundingClientRect().right <= width)", width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_it_is_printed_with_every_plot_on_the_paper(page: Any) -> None:
    page.emulate_media(media="print")
    until(page, "() => [...document.querySelectorAll('.main-svg')].every(svg => svg.clientWidth <= 640)")
    assert page.pdf(format="A4").startswith(b"%PDF")
    assert not page.locator("select").first.is_visible()


def test_a_script_in_any_field_is_text(browser: Any, tmp_path: Path) -> None:
    """The names, settings, versions, tensors and circuits are all script tags and event handlers."""
    report = opened(browser, hostile(made_results(seeds=1)), hostile(made_circuits()), tmp_path)
    page = report.page
    page.locator("#places-0").focus()
    page.keyboard.press("ArrowRight")
    assert "model.embed_tokens.weight</script><script>alert(1)" in page.locator("#places-0 .hovertext").text_content()
    assert page.locator("img, iframe, a[href], [onload], [onerror]").count() == 0
    assert page.locator("script").count() == 3
    rows = saved(page, "repairs", tmp_path)
    assert any("<script>" in row["repair"] for row in rows)
    assert report.said == []
    assert [url for url in report.asked if not url.startswith(("file:", "blob:", "data:"))] == []


def test_the_page_of_a_history_is_drawn_walked_sorted_and_saved(browser: Any, tmp_path: Path) -> None:
    """And asks for nothing; a message that is markup is text."""
    from playwright.sync_api import expect

    report = drawn(browser, write_report(made_history(tmp_path), tmp_path / "history.html"))
    page = report.page
    assert report.figures.keys() == {"stages-0", "metrics-0", "blame-0"}
    assert page.locator("#stages-0 .point, #stages-0 .points path").count() >= 4
    page.locator("#stages-0").focus()
    for told in ("base", "math (best)"):
        page.keyboard.press("ArrowRight")
        expect(page.locator("#stages-0 .hovertext")).to_contain_text(told)
    page.locator("#stages summary").click()
    head = page.locator("#stages thead th", has_text="changed")
    head.locator("button").click()
    cells = page.locator("#stages tbody tr > :nth-child(6)")
    shares = [float(text) for text in cells.evaluate_all("cells => cells.map(c => c.dataset.values)")]
    assert shares == sorted(shares)
    page.locator("#stages summary").click()
    rows = saved(page, "stages", tmp_path)
    assert {row["domain"] for row in rows} == {"math", "", "writing"}
    assert any("<script>" in row["message"] for row in rows)
    assert page.locator("img, iframe, a[href], [onload], [onerror]").count() == 0
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert report.said == []
    assert [url for url in report.asked if not url.startswith(("file:", "blob:", "data:"))] == []


def test_the_library_alone_would_not_save_a_page_whose_data_ends_its_element(browser: Any) -> None:
    """What stands in the page as data comes back from the browser's parser as it was."""
    figures: Any = {"a": [{"text": "</script><script>document.title = 'taken'</script><!--\u2028"}]}
    page = browser.new_page()
    page.set_content(f'<script type="application/json" id="figures">{embedded(figures)}</script>')
    assert json.loads(page.locator("#figures").text_content()) == figures
    assert page.title() == ""
    page.close()
