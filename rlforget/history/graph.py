"""The picture of a history: a line a stage, the newest first, and the branches as git draws them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

Node = tuple[str, str | None]
"""A node and its parent; None: it is the root."""


def draw(nodes: Sequence[Node]) -> Iterator[tuple[str, str | None]]:
    """Draw a tree, line by line; its root is last.

    Args:
        nodes: Every node once, children before their parents.

    Yields:
        The text of a line, and the node that stands on it, None for a line on which branches meet. A node is `*`, `|`
        passes it by, and `/` leads from a branch to its left neighbour.
    """
    lanes: list[str] = []  # for each column the node that it leads to next
    for node, parent in nodes:
        if node not in lanes:
            lanes.append(node)
        place = lanes.index(node)
        yield " ".join("*" if column == place else "|" for column in range(len(lanes))), node
        if parent is not None:
            lanes[place] = parent
            yield from _meet(lanes, parent)


def _meet(lanes: list[str], parent: str) -> Iterator[tuple[str, None]]:
    """Lead the right one of two columns to the left one, if both lead to `parent`: a column a line."""
    columns = [column for column, node in enumerate(lanes) if node == parent]
    if len(columns) < 2:
        return
    left, right = columns
    del lanes[right]
    # Those to its right move along, once.
    yield _line(right, [2 * column - 1 for column in range(right, len(lanes) + 1)]), None
    for column in range(right - 1, left, -1):
        yield _line(len(lanes), [2 * column - 1]), None


def _line(straight: int, slashes: Sequence[int]) -> str:
    """Draw `|` in the first columns and `/` at some characters."""
    length = max([2 * straight - 1, *(place + 1 for place in slashes)])
    cells = [" "] * length
    cells[0 : 2 * straight : 2] = "|" * straight
    for place in slashes:
        cells[place] = "/"
    return "".join(cells).rstrip()
