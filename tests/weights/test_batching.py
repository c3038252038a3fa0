"""Runs of items that are taken together."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from rlforget.weights.batching import batches

ITEMS = st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 9)))


@given(ITEMS, st.integers(0, 12))
def test_runs_are_all_items_in_order_of_one_kind_and_as_long_as_they_may_be(
    items: list[tuple[str, int]], most: int
) -> None:
    runs = list(batches(items, lambda item: item[1], most, lambda item: item[0]))
    assert [item for run in runs for item in run] == items
    for run in runs:
        assert len({kind for kind, _ in run}) == 1
        assert len(run) == 1 or sum(size for _, size in run) <= most
    for run, following in pairwise(runs):
        assert following[0][0] != run[0][0] or sum(size for _, size in [*run, following[0]]) > most


def test_an_item_is_taken_when_its_run_needs_it() -> None:
    taken = []

    def items() -> Iterator[int]:
        for size in (3, 3, 3, 3):
            taken.append(size)
            yield size

    runs = batches(items(), lambda size: size, 6)
    assert next(runs) == [3, 3]
    assert len(taken) == 3
