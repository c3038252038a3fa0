"""Ways to name a stage: `HEAD`, `base`, a name, a tag, the first digits of an id, and `~` for parents."""

from __future__ import annotations

import re

from rlforget.errors import HistoryError
from rlforget.history.index import Index
from rlforget.history.stage import Stage, lineage

FEWEST_DIGITS = 4  # of an id's beginning

_REFERENCE = re.compile(r"(?P<root>[A-Za-z0-9@][A-Za-z0-9._-]*)(?P<steps>(?:~\d{0,9}|\^)*)", re.ASCII)
_STEP = re.compile(r"~(\d*)|\^")
_DIGITS = re.compile(r"[0-9a-fA-F]+")


def resolve(index: Index, reference: str | Stage | None) -> Stage | None:
    """Return the stage that a reference names; None is the base.

    Args:
        index: The history's index.
        reference: `HEAD` (or `@`), the stage committed last; `base`; a stage's name; a tag; at least 4 digits that no
            other stage's id begins with. `~` or `^` after it is its parent, `~N` goes N stages up. A name goes before
            digits. None, the base, and a stage of this history stand for themselves.

    Raises:
        HistoryError: It names no stage, more than one, or goes beyond the base.
    """
    if reference is None:
        return None
    if isinstance(reference, Stage):
        if reference.id not in index.by_id:
            raise _unknown(index, f"stage {reference.name!r}", "a stage that is not in this history")
        return index.by_id[reference.id]
    parsed = _REFERENCE.fullmatch(reference)
    if parsed is None:
        raise _unknown(index, f"stage {reference!r}", "no such way to name one")
    up = sum(1 if step == "^" else int(step[1:] or 1) for step in _steps(parsed["steps"]))
    return _ancestor(index, reference, _root(index, parsed["root"]), up)


def label(stage: Stage | None) -> str:
    """Return what a stage is called."""
    return "base" if stage is None else stage.name


def _steps(text: str) -> list[str]:
    return [match.group() for match in _STEP.finditer(text)]


def _ancestor(index: Index, reference: str, stage: Stage | None, up: int) -> Stage | None:
    line = [*lineage(index.by_id, stage), None]
    if up >= len(line):
        raise _unknown(index, f"stage {reference!r}", f"the base {len(line) - 1} stages up, which has no parent")
    return line[up]


def _root(index: Index, root: str) -> Stage | None:
    if root in ("HEAD", "@"):
        return index.head
    if root == "base":
        return None
    named = next((stage for stage in index.stages if stage.name == root), None)
    if named is not None:
        return named
    if root in index.tags:
        return index.by_id[index.tags[root]]
    return _by_digits(index, root)


def _by_digits(index: Index, root: str) -> Stage:
    fits: list[Stage] = []
    if len(root) >= FEWEST_DIGITS and _DIGITS.fullmatch(root):
        fits = [stage for stage in index.stages if stage.id.startswith(root.lower())]
    if len(fits) > 1:
        shown = ", ".join(f"{stage.id[: len(root) + 4]} {stage.name}" for stage in fits[:5])
        raise HistoryError(
            f"stage {root!r}", expected="digits that one id begins with", found=shown, fix="Give more digits."
        )
    if not fits:
        raise _unknown(index, f"stage {root!r}", "no stage of that name")
    return fits[0]


def _unknown(index: Index, what: str, found: str) -> HistoryError:
    latest = [stage.name for stage in reversed(index.stages)][:6]
    more = ", ..." if len(index.stages) > len(latest) else ""
    return HistoryError(
        what,
        expected=f"HEAD, base, a tag, {FEWEST_DIGITS} or more digits of an id, or one of {', '.join(latest)}{more}"
        if latest
        else "base",
        found=found,
        fix="`rlforget log` lists the stages, `rlforget tag` the tags.",
    )
