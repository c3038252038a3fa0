"""What a completion means as a program or a document, among what it says about it."""

from __future__ import annotations

import re

_FENCE = re.compile(r"```[^\n`]*\n(.*?)(?:```|\Z)", re.DOTALL)


def fenced(text: str) -> str:
    """Return the last block between fences, or the whole text where there is none; a last fence may be missing."""
    blocks = _FENCE.findall(text)
    return str(blocks[-1]) if blocks else text
