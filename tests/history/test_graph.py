"""The picture of branches."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlforget.history.graph import Node, draw

trees = st.lists(st.integers(0, 10**6), max_size=12).map(
    lambda numbers: [0, *(number % place for place, number in enumerate(numbers, start=1))]
)
"""For each node from 1 on the number of its parent; node 0 is the root."""


def nodes(parents: list[int]) -> list[Node]:
    """The nodes of a tree, the newest first."""
    return [(str(node), str(parents[node]) if node else None) for node in reversed(range(len(parents)))]


def picture(parents: list[int]) -> list[str]:
    return [f"{text} {node}" if node is not None else text for text, node in draw(nodes(parents))]


def test_a_line() -> None:
    assert picture([0, 0, 1]) == ["* 2", "* 1", "* 0"]


def test_two_branches() -> None:
    assert picture([0, 0, 1, 1]) == ["* 3", "| * 2", "|/", "* 1", "* 0"]


def test_a_branch_passes_others_by() -> None:
    assert picture([0, 0, 0, 1, 0]) == ["* 4", "| * 3", "| | * 2", "| |/", "|/|", "| * 1", "|/", "* 0"]


@given(trees)
def test_every_node_stands_once_and_is_linked_to_its_parent(parents: list[int]) -> None:
    drawn = list(draw(nodes(parents)))
    assert [node for _, node in drawn if node is not None] == [node for node, _ in nodes(parents)]
    for row, (text, node) in enumerate(drawn):
        if node is not None and node != "0":
            assert text.count("*") == 1
            assert _followed(drawn, row) == str(parents[int(node)])


@pytest.mark.skipif(shutil.which("git") is None, reason="there is no git")
@pytest.mark.parametrize(
    "parents", [[0, 0, 1], [0, 0, 1, 1, 1], [0, 0, 0, 1, 0], [0, 0, 1, 2, 1, 4, 3], [0, 0, 1, 1, 0, 2]], ids=str
)
def test_it_is_what_git_draws(parents: list[int], tmp_path: Path) -> None:
    assert picture(parents) == _drawn_by_git(tmp_path, parents)


def _followed(drawn: list[tuple[str, str | None]], row: int) -> str:
    """Follow the line that leaves a node downwards, and return the node that it reaches."""
    place, slanted = drawn[row][0].index("*"), False
    for text, node in drawn[row + 1 :]:
        left, here = (text[at : at + 1] if at >= 0 else "" for at in (place - 1, place))
        if left == "/" and (slanted or here != "|"):  # where lines cross, each goes on as it came
            place, slanted = place - 2, True
            continue
        slanted = False
        assert here in ("|", "*"), (drawn, place)
        if here == "*":
            assert node is not None
            return node
    raise AssertionError(drawn)


def _drawn_by_git(folder: Path, parents: list[int]) -> list[str]:
    def git(*arguments: str, stdin: str = "") -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, input=stdin, capture_output=True, text=True, check=True).stdout.strip()

    git("init", "--quiet")
    stream = []
    for node, parent in enumerate(parents):
        stream += [f"commit refs/heads/b{node}", f"mark :{node + 1}"]
        stream += [f"committer a <a> {1000 + node} +0000", f"data {len(str(node))}", str(node)]
        stream += [f"from :{parent + 1}"] if node else []
    git("fast-import", "--quiet", stdin="\n".join(stream) + "\n")
    return [line.rstrip() for line in git("log", "--all", "--graph", "--format=%s", "--date-order").splitlines()]
