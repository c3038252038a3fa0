"""What is cut short: commands, the folder that they write, and what has to work afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Command = Sequence[str]
"""The words of a command. `{work}` is the folder that is written, `{inputs}` lies beside it; a first word that begins
with @ names a function of `jobs`, others are `rlforget`'s."""

FINE = frozenset({0})
OR_NOTHING_TO_DO = frozenset({0, 3})
OR_THERE_ALREADY = frozenset({0, 1, 3})


@dataclass(frozen=True)
class Scenario:
    """A command to be cut short.

    Attributes:
        name: For reports.
        kind: The verb that it counts for.
        seed: What makes the folder as it is before.
        command: The command.
        later: What is run afterwards, whichever state was left, with the exit codes that it may have. It leads to one
            and the same state, without leftovers.
    """

    name: str
    kind: str
    seed: tuple[Command, ...]
    command: Command
    later: tuple[tuple[Command, frozenset[int]], ...]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _scenario(name: str, kind: str, seed: Sequence[str], command: str, *later: tuple[str, frozenset[int]]) -> Scenario:
    return Scenario(
        name, kind, tuple(map(_words, seed)), _words(command), tuple((_words(text), codes) for text, codes in later)
    )


_MODEL = "@copy {inputs}/base {work}/model"
_HISTORY = ("init {inputs}/base -H {work}/h", "commit {inputs}/tuned -H {work}/h --name math -m tuned")
_TIDY = (
    ("gc -H {work}/h", OR_NOTHING_TO_DO),
    ("verify {work}/h", FINE),
    ("checkout HEAD -H {work}/h -o {work}/head --force", FINE),
)
_BACK = (
    ("verify {work}/model --repair", FINE),
    ("undo {work}/model", OR_NOTHING_TO_DO),
    ("undo {work}/model", OR_NOTHING_TO_DO),
)
_IN_PLACE = "apply {work}/model {inputs}/one.delta.safetensors --in-place"
_IN_PLACE_AGAIN = "apply {work}/model {inputs}/two.delta.safetensors --in-place"
_APPLIED = "apply {inputs}/base {inputs}/one.delta.safetensors -o {work}/out"
_EXPORTED = "export {inputs}/one.delta.safetensors --base {inputs}/base --format task-vector -o {work}/out"
_APPLIED_OVER = "apply {inputs}/tuned {inputs}/two.delta.safetensors -o {work}/out --force"

SCENARIOS = (
    _scenario(
        "diff",
        "diff",
        (),
        "diff {inputs}/base {inputs}/tuned -o {work}/x.delta.safetensors",
        ("diff {inputs}/base {inputs}/tuned -o {work}/x.delta.safetensors --force", FINE),
    ),
    _scenario("apply to a new folder", "apply", (), _APPLIED, (f"{_APPLIED} --force", FINE)),
    _scenario("apply over a folder", "apply", (_APPLIED,), _APPLIED_OVER, (_APPLIED_OVER, FINE)),
    _scenario("export a task vector", "export", (), _EXPORTED, (f"{_EXPORTED} --force", FINE)),
    _scenario("apply in place", "in-place apply", (_MODEL,), _IN_PLACE, *_BACK),
    _scenario(
        "revert in place",
        "in-place apply",
        (_MODEL, _IN_PLACE),
        "revert {work}/model {inputs}/one.delta.safetensors --in-place",
        *_BACK,
    ),
    _scenario("rollback in place", "in-place apply", (_MODEL, _IN_PLACE), "@roll_back {work}/model {inputs}", *_BACK),
    _scenario("undo", "undo", (_MODEL, _IN_PLACE, _IN_PLACE_AGAIN), "undo {work}/model", *_BACK),
    _scenario(
        "recovery", "undo", (_MODEL, "@half_write {work}/model {inputs}"), "verify {work}/model --repair", *_BACK
    ),
    _scenario(
        "init",
        "commit",
        (),
        "init {inputs}/base -H {work}/h --copy",
        ("init {inputs}/base -H {work}/h --copy", FINE),
        *_TIDY,
    ),
    _scenario(
        "commit",
        "commit",
        _HISTORY,
        "commit {inputs}/third -H {work}/h --name code -m third",
        ("commit {inputs}/third -H {work}/h --name code -m third", OR_THERE_ALREADY),
        *_TIDY,
    ),
    _scenario(
        "checkout to a new folder",
        "checkout",
        _HISTORY,
        "checkout math -H {work}/h -o {work}/out",
        ("checkout math -H {work}/h -o {work}/out --force", FINE),
    ),
    _scenario(
        "checkout over a folder",
        "checkout",
        (*_HISTORY, "checkout base -H {work}/h -o {work}/out"),
        "checkout math -H {work}/h -o {work}/out --force",
        ("checkout math -H {work}/h -o {work}/out --force", FINE),
    ),
    _scenario(
        "gc",
        "gc",
        (*_HISTORY, "commit {inputs}/third -H {work}/h --name code -m third", "@orphan {work}/h"),
        "gc -H {work}/h --drop code",
        ("gc -H {work}/h --drop code", OR_THERE_ALREADY),
        *_TIDY,
    ),
    _scenario("tag", "tag", _HISTORY, "tag best math -H {work}/h", ("tag best math -H {work}/h --force", FINE), *_TIDY),
)
