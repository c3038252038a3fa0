"""HTML that is escaped by construction: a plain string given to `tag` is text, and only an `Html` is markup."""

from __future__ import annotations

import html
from collections.abc import Iterable


class Html(str):
    """A string that is HTML already."""

    __slots__ = ()


def tag(name: str, /, *children: str, **attributes: str | bool) -> Html:
    """Build an element.

    Args:
        name: Its name; of `VOID` elements there is no end tag.
        children: Its contents; every `str` that is no `Html` is escaped.
        attributes: `class_` is written `class`, `aria_label` is written `aria-label`; True has no value, False is left
            out.
    """
    written = "".join(
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{html.escape(str(value))}"')
        for key, value in attributes.items()
        if value is not False
    )
    inside = join(children)
    return Html(f"<{name}{written}>" if name in VOID else f"<{name}{written}>{inside}</{name}>")


VOID = ("meta", "br")


def join(children: Iterable[str]) -> Html:
    """Put children one after another, escaping those that are no `Html`."""
    return Html("".join(child if isinstance(child, Html) else html.escape(child) for child in children))
