"""Loops that are counted: what a listener is told, and that nothing is changed by being counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlforget.counting import Listener, counted, listening, telling

Told = list[tuple[str, int, int]]


def hearing(told: Told) -> Listener:
    return lambda what, done, total: told.append((what, done, total))


@given(st.lists(st.integers(0, 9)))
def test_every_item_is_told_of(sizes: list[int]) -> None:
    told: Told = []
    with listening(hearing(told)):
        assert list(counted("things", sizes, size=lambda size: size)) == sizes
    assert told == [("things", sum(sizes[:done]), sum(sizes)) for done in range(len(sizes) + 1)]


def test_nobody_listens() -> None:
    items = [1, 2]
    assert counted("things", items) is items
    assert telling("things") is None


def test_what_has_no_length_is_not_counted_unless_it_is_given() -> None:
    def endless() -> Iterator[int]:
        yield 1

    told: Told = []
    with listening(hearing(told)):
        assert list(counted("things", endless())) == [1]
        assert told == []
        assert list(counted("things", endless(), 1)) == [1]
    assert told == [("things", 0, 1), ("things", 1, 1)]


@pytest.mark.parametrize("leave", [lambda: None, lambda: (_ for _ in ()).throw(ValueError)], ids=["break", "raise"])
def test_a_loop_inside_another_is_silent_until_that_one_ends(leave: Callable[[], None]) -> None:
    told: Told = []
    with listening(hearing(told)):
        try:
            for _ in counted("outer", range(2)):
                assert list(counted("inner", range(5))) == [0, 1, 2, 3, 4]
                assert telling("inner") is None
                leave()
                break
        except ValueError:
            pass
        assert [what for what, _, _ in told] == ["outer"]
        list(counted("next", range(1)))
    assert told[1:] == [("next", 0, 1), ("next", 1, 1)]
