"""The page: one HTML file that needs nothing else, neither beside it nor from the network."""

from __future__ import annotations

import base64
import hashlib
import json
import shlex
from importlib.resources import files
from pathlib import Path

from rlforget.errors import missing_extra
from rlforget.report.circuits_file import CIRCUITS_FILE, COMMAND, Circuits, read_circuits
from rlforget.report.figure import Plot
from rlforget.report.markup import Html, tag
from rlforget.report.over_seeds import OverSeeds, over_seeds
from rlforget.report.results import RESULTS_FILE, Results, read_results
from rlforget.report.sections import Section, sections
from rlforget.report.sparklines import sparklines
from rlforget.report.story import seeds_note, story
from rlforget.report.tables import Cell, Table
from rlforget.report.wording import listing, number
from rlforget.weights.atomic import check_free, new_file


def write_report(run: Path, out: Path, force: bool = False) -> Path:
    """Write a page about a run, or about circuits alone.

    Args:
        run: The run's folder, as `rlforget demo` wrote it, with circuits in it or not; or circuits that
            `rlforget circuits compare` saved, the file or a folder that holds it.
        out: The page to write, about 5 MB: the plots' library is in it.
        force: Replace what is there.

    Returns:
        `out`.

    Raises:
        ReportError: The run's results are missing, or they or its circuits are damaged, or of another format or
            version.
        OutputError: `out` exists and `force` is not given, or it cannot be written.
        MissingExtraError: plotly is not installed.
    """
    check_free(out, force=force)
    results, circuits = read_run(run)
    page = compose(results, run, library=_plotly(), circuits=circuits)
    with new_file(out, force=force) as file:
        file.write(page.encode("utf-8", errors="replace"))  # JSON may hold halves of a character
    return out


def read_run(run: Path) -> tuple[Results | None, Circuits | None]:
    """Read what a page is about; not both are None.

    Args:
        run: See `write_report`.

    Raises:
        ReportError: Neither is there, or one is damaged, or of another format or version.
    """
    circuits = read_circuits(run)
    alone = circuits is not None and not (run / RESULTS_FILE).exists()
    return None if alone else read_results(run), circuits


def compose(results: Results | None, run: Path, *, library: str, circuits: Circuits | None = None) -> str:
    """Build the page.

    Args:
        results: The run's results; without any the page is about circuits alone.
        run: The run's folder, or the circuits' file, for the commands at the end.
        library: The source of plotly.js.
        circuits: The run's circuits, where it has some.
    """
    found = None if results is None else over_seeds(results)
    parts = list(sections(found, circuits))
    figures = {f"{part.key}-{i}": plot.views for part in parts for i, plot in enumerate(part.plots)}
    scripts = [_lines(library), _lines(_asset("page.js"))]
    head = [
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_policy(scripts)),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", f"rlforget: {'circuits' if found is None else _path(found)}"),
        tag("style", Html(_asset("page.css"))),
    ]
    body = [
        _opening_of_circuits() if results is None or found is None else _opening(results, found),
        *(_section(part) for part in parts if part.plots),
        _missing([part.heading for part in parts if not part.plots and not part.remedy]),
        *(tag("p", part.remedy, class_="muted") for part in parts if not part.plots and part.remedy),
        _origin_of_circuits(run) if results is None else _origin(results, run),
    ]
    code = [
        tag("script", _json(figures), type="application/json", id="figures"),
        *(tag("script", Html(script)) for script in scripts),
    ]
    document = tag("html", tag("head", *head), tag("body", tag("main", *body), *code), lang="en")
    return f"<!doctype html>\n{document}\n"


def _plotly() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise missing_extra("plotly", "report") from None
    return str(get_plotlyjs())


def _asset(name: str) -> str:
    return files("rlforget.report").joinpath(name).read_text(encoding="utf-8")


def _lines(script: str) -> str:
    """A script with the line ends that a browser makes of it, so that its hash is the browser's."""
    return script.replace("\r\n", "\n").replace("\r", "\n")


def _policy(scripts: list[str]) -> str:
    """Forbid the network, and every script but ours."""
    hashes = [base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{found}'" for found in hashes)
    return f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:"


def _json(figures: dict[str, list[dict[str, object]]]) -> Html:
    """JSON that cannot end the element it stands in."""
    text = json.dumps(figures, allow_nan=False, separators=(",", ":"))
    return Html(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _path(found: OverSeeds) -> str:
    return " → ".join(stage.name for stage in found.stages) or "a run"


def _opening(results: Results, found: OverSeeds) -> Html:
    sentences = story(found)
    short = (
        " The short form of the demo: fewer steps, prompts and samples, and smaller effects." if results.fast else ""
    )
    return tag(
        "header",
        tag("h1", "What fine-tuning changed, what it cost, and what undoing gave back"),
        tag("p", f"{seeds_note(found.seeds)}{short}", class_="muted"),
        tag("ol", *(tag("li", sentence) for sentence in sentences)) if sentences else Html(),
        sparklines(found),
        tag("noscript", tag("p", "The plots need JavaScript; the tables hold the same numbers.")),
    )


def _opening_of_circuits() -> Html:
    return tag(
        "header",
        tag("h1", "Which attention heads a task needs, and what fine-tuning kept of them"),
        tag("noscript", tag("p", "The plots need JavaScript; the tables hold the same numbers.")),
    )


def _section(part: Section) -> Html:
    return tag(
        "section",
        tag("h2", part.heading),
        tag("p", part.text),
        _choice(part.choices) if part.choices else Html(),
        tag("div", *(_plot(plot, f"{part.key}-{i}") for i, plot in enumerate(part.plots)), class_="plots"),
        *(_table(table) for table in part.tables),
        id=part.key,
    )


def _plot(plot: Plot, key: str) -> Html:
    drawn = tag(
        "div",
        id=key,
        class_="plot",
        role="img",
        tabindex="0",
        aria_label=plot.title,
        aria_describedby=f"{key}-reading",
        style=f"height:{plot.height}px",
    )
    return tag(
        "figure",
        tag("figcaption", plot.title),
        drawn,
        tag("p", plot.reading, class_="reading", id=f"{key}-reading"),
    )


def _choice(choices: tuple[str, ...]) -> Html:
    return tag("label", "Show: ", tag("select", *(tag("option", choice) for choice in choices), autocomplete="off"))


def _table(table: Table) -> Html:
    """A table that is closed at first; its heads sort it, and a button saves it."""
    names = (tag("th", tag("button", name, type="button"), scope="col") for name in table.head)
    rows = [tag("tr", _cell(row[0], "th", scope="row"), *map(_cell, row[1:])) for row in table.rows]
    grid = tag("table", tag("thead", tag("tr", *names)), tag("tbody", *rows), aria_label=table.caption)
    return tag(
        "details",
        tag("summary", f"Table: {table.caption}"),
        tag("button", "Save as CSV", type="button", class_="csv"),
        tag("div", grid, class_="scroll", tabindex="0", role="region", aria_label=table.caption),
    )


def _cell(cell: str | Cell, name: str = "td", **attributes: str) -> Html:
    """A cell, with its numbers in full for the script that sorts and saves the table."""
    if not isinstance(cell, Cell):
        return tag(name, cell, **attributes)
    known = {"data_values": " ".join(map(repr, cell.values))} if cell.values else {}
    return tag(name, cell.text, **attributes, **known)


def _missing(headings: list[str]) -> Html:
    return tag("p", f"Not in this run, so left out: {listing(headings)}.", class_="muted") if headings else Html()


def _origin(results: Results, run: Path) -> Html:
    """Versions, seeds, settings, and the commands that make the run and the page again."""
    seeds = " ".join(f"--seed {one.seed}" for one in results.runs)
    folder = shlex.quote(str(run))
    commands = [
        f"rlforget demo {seeds}{' --fast' if results.fast else ''} --out {folder}",
        f"rlforget report {folder}",
    ]
    took = [f"seed {one.seed}: {number(one.seconds, 0)} s" for one in results.runs if one.seconds is not None]
    facts = [("seeds", ", ".join(str(one.seed) for one in results.runs))]
    facts += [("machine", results.machine)] if results.machine else []
    facts += [("time", ", ".join(took))] if took else []
    facts += [(f"version of {name}", version) for name, version in results.versions.items()]
    facts += results.settings.items()
    rows: list[list[str | Cell]] = [[what, value] for what, value in facts]
    return tag(
        "section",
        tag("h2", "How this came about"),
        tag("p", "The run and this page are made again by:"),
        tag("pre", "\n".join(commands)),
        _table(Table("Seeds, machine, versions and settings", ["what", "value"], rows)),
        id="origin",
    )


def _origin_of_circuits(run: Path) -> Html:
    place = shlex.quote(str(run))
    return tag(
        "section",
        tag("h2", "How this came about"),
        tag("p", "The circuits and this page are made again by:"),
        tag("pre", f"{COMMAND} -o {CIRCUITS_FILE}\nrlforget report {place}"),
        id="origin",
    )
