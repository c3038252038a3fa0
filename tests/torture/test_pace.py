from __future__ import annotations

from tests.torture.pace import Pace


def test_all_points_where_there_is_time() -> None:
    pace = Pace(3600, 100)
    assert list(pace.of(50)) == list(range(50))
    assert list(pace.of(50, cost=3)) == list(range(50))


def test_where_time_is_short_all_tests_are_thinned() -> None:
    pace = Pace(0.3 * 50, 100)  # at the first guess, half of them
    assert 24 <= len(list(pace.of(50))) <= 25
    late = Pace(0, 100)
    assert list(late.of(50)) == [0]
    assert list(late.of(9, least=0.7)) == [0, 1, 3, 4, 6, 7]
    assert list(late.of(1)) == [0]
