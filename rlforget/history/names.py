"""The names of stages, and the tags that are given to them later on."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from rlforget.errors import HistoryError
from rlforget.history.index import Index, read_index, write_index
from rlforget.history.lock import locked
from rlforget.history.references import resolve
from rlforget.history.schema import Malformed, check_name
from rlforget.history.stage import Stage


def tag(folder: Path, name: str, reference: str | Stage, *, force: bool, wait: float, dry_run: bool = False) -> Stage:
    """Tag a stage; see `History.tag`."""
    with nullcontext() if dry_run else locked(folder, wait):
        index = read_index(folder)
        stage = resolve(index, reference)
        if stage is None:
            fix = "Call it base."
            raise HistoryError(f"tag {name!r}", expected="a stage to tag", found="the base", fix=fix)
        if index.tags.get(name) == stage.id:
            return stage
        check_new_name(index if not force else replace(index, tags={}), name, "tag")
        if not dry_run:
            write_index(folder, replace(index, tags={**index.tags, name: stage.id}))
    return stage


def untag(folder: Path, name: str, *, wait: float, dry_run: bool = False) -> None:
    """Take a tag away; see `History.untag`."""
    with nullcontext() if dry_run else locked(folder, wait):
        index = read_index(folder)
        if name not in index.tags:
            known = ", ".join(sorted(index.tags)) or "no tags"
            raise HistoryError(f"tag {name!r}", expected="a tag", found=known, fix="`rlforget tag` lists them.")
        if not dry_run:
            write_index(folder, replace(index, tags={tag: id for tag, id in index.tags.items() if tag != name}))


def check_new_name(index: Index, name: str, what: str) -> None:
    """Check that a stage or tag may be called `name`.

    Raises:
        HistoryError: The name is taken, reserved, or has characters that it may not have.
    """
    try:
        check_name(name)
    except Malformed as fault:
        fix = "Choose another name: letters and digits, with dots, dashes and underscores between them."
        raise HistoryError(f"the new {what}", expected="a name", found=str(fault), fix=fix) from fault
    if name in index.names():
        kind = "a tag" if name in index.tags else "a stage"
        fix = (
            "Choose another name, or move the tag with --force (force=True)."
            if name in index.tags
            else "Choose another name."
        )
        raise HistoryError(f"the new {what} {name!r}", expected="a name of its own", found=f"{kind} of it", fix=fix)


def free_name(index: Index, wanted: str) -> str:
    """Return `wanted`, or where that is taken `wanted-2`, `wanted-3`, ..."""
    taken, name, number = index.names(), wanted, 1
    while name in taken:
        number += 1
        name = f"{wanted}-{number}"
    return name
