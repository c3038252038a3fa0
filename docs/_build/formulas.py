"""Formulas between dollar signs, as MathML: a browser draws it without a script, a font or a request.

`$…$` stands in a line and `$$…$$` in one of its own, as on code hosts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from latex2mathml.converter import convert
from markdown import Extension
from markdown.inlinepatterns import InlineProcessor
from mkdocs.exceptions import PluginError

if TYPE_CHECKING:
    import re

    from markdown import Markdown
    from mkdocs.config.defaults import MkDocsConfig

_PRIORITY = 185  # after code (190), before escapes (180), which would take a formula's backslashes


class _Formula(InlineProcessor):
    def handleMatch(self, m: re.Match[str], data: str) -> tuple[str, int, int]:  # type: ignore[override]  # noqa: N802
        dollars, text = m.group(1), m.group(2)
        drawn = convert(text, display="block" if dollars == "$$" else "inline")
        if "\\" in drawn:
            raise PluginError(f"a formula has a command that is not known: {text}")
        return self.md.htmlStash.store(drawn), m.start(0), m.end(0)


class _Formulas(Extension):
    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802
        md.inlinePatterns.register(_Formula(r"(\$\$?)([^$]+)\1", md), "formula", _PRIORITY)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add formulas to the Markdown that pages may use."""
    extensions: list[Any] = config.markdown_extensions
    extensions.append(_Formulas())
    return config
