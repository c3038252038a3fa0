"""Work done ahead of its reader."""

from __future__ import annotations

import threading

import pytest

from rlforget.weights.ahead import map_ahead


@pytest.mark.parametrize("count", [0, 1, 2, 9])
def test_results_come_in_order(count: int) -> None:
    assert list(map_ahead(lambda item: item * item, iter(range(count)))) == [item * item for item in range(count)]


def test_a_single_item_starts_no_thread() -> None:
    assert list(map_ahead(lambda _: threading.get_ident(), [0])) == [threading.get_ident()]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_fault_comes_in_its_turn(count: int) -> None:
    def work(item: int) -> int:
        if item == count - 1:
            raise ValueError(str(item))
        return item

    results = map_ahead(work, range(count))
    assert [next(results) for _ in range(count - 1)] == list(range(count - 1))
    with pytest.raises(ValueError, match=str(count - 1)):
        next(results)
