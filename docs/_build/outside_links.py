"""Links from a page to files of the repository that are no part of the site: each must exist, and becomes its path.

On a code host such a link leads to the file; the site, which has no copy of it, names it.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.exceptions import PluginError

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

_LINK = re.compile(r"\[(?P<text>[^]\n]+)\]\((?P<target>(?:\.\./)+[^)#\s]+)[^)\s]*\)")


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Name the file where a link leaves the documentation."""
    here = posixpath.dirname(page.file.src_uri)

    def named(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(here, link["target"]))
        if not target.startswith("../"):
            return link[0]
        path = target.removeprefix("../")
        if not (Path(config.docs_dir).parent / path).exists():
            raise PluginError(f"{page.file.src_uri} links to {path}, which does not exist")
        text = link["text"].strip("`")
        return f"`{path}`" if text in (path, posixpath.basename(path)) else f"{link['text']} (`{path}`)"

    return _LINK.sub(named, markdown)
