"""A page taken apart, as a browser's parser sees it."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from rlforget.report.circuits_file import parse_circuits
from rlforget.report.page import compose
from rlforget.report.results import parse_results


class Page(HTMLParser):
    """The elements of a page: each a name, its attributes, and the text directly in it; `code` counts as text."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self._open: list[list[str]] = [[]]
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "code":
            return
        self.elements.append((tag, dict(attrs), []))
        if tag not in ("meta", "br"):
            self._open.append(self.elements[-1][2])

    def handle_endtag(self, tag: str) -> None:
        if tag != "code":
            self._open.pop()

    def handle_data(self, data: str) -> None:
        self._open[-1].append(data)

    def texts(self, tag: str) -> list[str]:
        return ["".join(text) for name, _, text in self.elements if name == tag]

    @property
    def figures(self) -> dict[str, list[dict[str, Any]]]:
        data = next("".join(text) for name, given, text in self.elements if name == "script" and "id" in given)
        figures: dict[str, list[dict[str, Any]]] = json.loads(data)
        return figures


def page_of(results: dict[str, Any], run: Path = Path("runs/demo"), *, circuits: Any = None) -> Page:
    """The page about some results, without the plots' library."""
    found = None if circuits is None else parse_circuits(circuits)
    return Page(compose(parse_results(results), run, library="// plotly.js", circuits=found))
