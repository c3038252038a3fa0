"""The site builds without a warning, asks nothing of the network, leads nowhere in vain, and leaves no name out."""

from __future__ import annotations

import importlib
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

import rlforget as rf
import rlforget_kernels
from rlforget import circuits, domains, errors, training
from rlforget.cli.app import TASKS, name_of
from rlforget.domains import rewards
from tests.docs.pages import ROOT

PLAIN = {"METHODS", "METRICS", "BUILT_IN", "__version__"}
"""Public names that are no class and no function: a page tells of them in its own words."""


class Parsed(HTMLParser):
    """What a page has to be jumped to, what it links to, and what a browser fetches to show it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        self.ids.update(given[name] for name in ("id", "name") if name in given)
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag == "link" and given.get("rel") in ("stylesheet", "preload", "preconnect", "icon", "dns-prefetch"):
            self.fetched.append(given["href"])
        if "src" in given:
            self.fetched.append(given["src"])


def build(out: Path) -> dict[Path, Parsed]:
    """Build the site as `make docs` does, and read its pages."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return {path: Parsed(path) for path in out.rglob("*.html") if path.name != "404.html"}  # which a server shows


def test_the_site(tmp_path: Path) -> None:
    """All that is asked of the built site, in one test: it is built once."""
    parsed = build(tmp_path)
    assert len(parsed) > 30
    check_that_nothing_is_asked_of_the_network(tmp_path, parsed)
    check_that_links_and_anchors_lead_somewhere(parsed)
    check_that_every_public_name_and_command_is_in_the_reference(tmp_path, parsed)


def check_that_nothing_is_asked_of_the_network(site: Path, parsed: dict[Path, Parsed]) -> None:
    for path, page in parsed.items():
        for address in page.fetched:
            if not address.startswith("data:"):
                assert not urlsplit(address).netloc, (path, address)
                assert (path.parent / urlsplit(address).path).exists(), (path, address)
    for style in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?(https?:)?//", style.read_text(encoding="utf-8")), style


def check_that_links_and_anchors_lead_somewhere(parsed: dict[Path, Parsed]) -> None:
    for path, page in parsed.items():
        for address in page.links:
            parts = urlsplit(address)
            if parts.scheme or not (parts.path or parts.fragment):
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert target.exists(), (path, address)
            if parts.fragment and target in parsed:
                assert unquote(parts.fragment) in parsed[target].ids, (path, address)


def public_names() -> Iterator[tuple[object, str]]:
    """Yield every class and function that users are told to use, under each name that it goes by."""
    for module in (rf, circuits, domains, rewards, training):
        yield from ((getattr(module, name), f"{module.__name__}.{name}") for name in module.__all__)
    yield from ((found, f"rlforget.errors.{name}") for name, found in vars(errors).items() if isinstance(found, type))
    for name in rlforget_kernels.OPERATORS:
        yield importlib.import_module(f"rlforget_kernels.{name}"), f"rlforget_kernels.{name}"


def check_that_every_public_name_and_command_is_in_the_reference(site: Path, parsed: dict[Path, Parsed]) -> None:
    told = set().union(*(page.ids for path, page in parsed.items() if path.parent == site / "reference"))
    names: dict[int, list[str]] = {}
    for found, name in public_names():
        is_module = isinstance(found, ModuleType) and not name.startswith("rlforget_kernels.")
        if not is_module and name.rpartition(".")[2] not in PLAIN:
            names.setdefault(id(found), []).append(name)
    missing = [several for several in names.values() if not told.intersection(several)]
    assert missing == [], "a line `::: NAME` in a page of docs/reference is wanted"
    commands = {name_of(command).replace(" ", "-") for task in TASKS.values() for command in task}
    assert commands - parsed[site / "reference" / "command-line.html"].ids == set()


def hook(name: str) -> dict[str, Any]:
    """What a hook of the site defines; mkdocs, too, runs it by its path."""
    return runpy.run_path(str(ROOT / "docs" / "_build" / f"{name}.py"))


def test_formulas_become_mathml_and_code_stays() -> None:
    from markdown import markdown

    extension: Any = hook("formulas")["_Formulas"]()
    made = markdown("The norm $\\lVert u \\rVert$ of `$HOME` in\n\n$$u = W^\\top y$$", extensions=[extension])
    assert made.count("<math") == 2
    assert "<code>$HOME</code>" in made
    with pytest.raises(Exception, match=r"not known: .*nonsense"):
        markdown("$\\nonsense{x}$", extensions=[extension])


def test_links_out_of_the_pages_name_a_file_that_exists() -> None:
    class Here:
        src_uri, docs_dir = "how-to/page.md", str(ROOT / "docs")
        file = config = None

    on_page_markdown = hook("outside_links")["on_page_markdown"]
    here: Any = Here()
    here.file = here

    def named(text: str) -> str:
        return str(on_page_markdown(text, page=here, config=here, files=here))

    assert named("see [README.md](../../README.md)") == "see `README.md`"
    assert named("see [the readme](../../README.md#two)") == "see the readme (`README.md`)"
    assert named("see [theory](../theory.md)") == "see [theory](../theory.md)"
    with pytest.raises(Exception, match=r"links to nowhere\.md"):
        named("[x](../../nowhere.md)")
