"""A page as one HTML file that needs nothing else, neither beside it nor from the network."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from importlib.resources import files

from rlforget.errors import missing_extra
from rlforget.report.figure import Plot
from rlforget.report.markup import Html, tag
from rlforget.report.sections import Section
from rlforget.report.tables import Cell, Table
from rlforget.report.wording import listing


def plotly() -> str:
    """Return the source of plotly.js.

    Raises:
        MissingExtraError: plotly is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise missing_extra("plotly", "report") from None
    return str(get_plotlyjs())


def document(title: str, opening: Html, parts: Sequence[Section], origin: Html, *, library: str) -> str:
    """Put a page together.

    Args:
        title: Its title in the browser.
        opening: What stands above the parts.
        parts: Those with plots are shown; of the others one line says what is missing, and what adds it.
        origin: What stands below.
        library: The source of plotly.js.
    """
    figures = {f"{part.key}-{i}": plot.views for part in parts for i, plot in enumerate(part.plots)}
    scripts = [_lines(library), _lines(_asset("page.js"))]
    head = [
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_policy(scripts)),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", f"rlforget: {title}"),
        tag("style", Html(_asset("page.css"))),
    ]
    body = [
        opening,
        *(_section(part) for part in parts if part.plots),
        _missing([part.heading for part in parts if not part.plots and not part.remedy]),
        *(tag("p", *_prose(part.remedy), class_="muted missing") for part in parts if not part.plots and part.remedy),
        origin,
    ]
    code = [
        tag("script", embedded(figures), type="application/json", id="figures"),
        *(tag("script", Html(script)) for script in scripts),
    ]
    page = tag("html", tag("head", *head), tag("body", tag("main", *body), *code), lang="en")
    return f"<!doctype html>\n{page}\n"


def opening(heading: str, note: str, sentences: Sequence[str], *more: Html) -> Html:
    """Build what stands at the top: a heading, a note on what the numbers are, and the story."""
    return tag(
        "header",
        tag("h1", heading),
        tag("p", note, class_="muted") if note else Html(),
        tag("ol", *(tag("li", sentence) for sentence in sentences)) if sentences else Html(),
        *more,
        tag("noscript", tag("p", "The plots need JavaScript; the tables hold the same numbers.")),
    )


def origin(what: str, commands: Sequence[str], *tables: Table) -> Html:
    """Build what stands at the end: the commands that make it all again, and what else it depends on."""
    return tag(
        "section",
        tag("h2", "How this came about"),
        tag("p", f"{what} made again by:"),
        tag("pre", "\n".join(commands)),
        *map(_table, tables),
        id="origin",
    )


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


def embedded(figures: dict[str, list[dict[str, object]]]) -> Html:
    """Write figures as JSON that cannot end the element it stands in."""
    text = json.dumps(figures, allow_nan=False, separators=(",", ":"))
    return Html(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _section(part: Section) -> Html:
    return tag(
        "section",
        tag("h2", part.heading),
        tag("p", *_prose(part.text)),
        _choice(part.choices) if part.choices else Html(),
        tag("div", *(_plot(plot, f"{part.key}-{i}") for i, plot in enumerate(part.plots)), class_="plots"),
        *(_table(table) for table in part.tables),
        id=part.key,
    )


def _prose(text: str) -> list[str]:
    """A text in which what stands between backquotes is code."""
    return [tag("code", part) if position % 2 else part for position, part in enumerate(text.split("`"))]


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
    if not headings:
        return Html()
    said = f"Not in this run, so left out: {listing(headings)}. `rlforget demo` makes a run that has all of them."
    return tag("p", *_prose(said), class_="muted missing")
