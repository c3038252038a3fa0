"""Tags."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlforget.errors import HistoryError
from rlforget.history import History
from rlforget.history.names import free_name
from tests.history.made import made_index, write_made


@pytest.fixture
def history(tmp_path: Path) -> History:
    return History.open(write_made(tmp_path / "history", made_index({"code": None, "math": "code"})))


def test_a_tag_names_its_stage_for_good(history: History) -> None:
    code, math = history.stages
    assert history.tag("best") == math
    assert history.tag("first", "math~1") == code
    assert history.tag("first", "code") == code  # again, which changes nothing
    assert history.stage("best~1") == history.stage("first") == code
    assert history.tags == {"best": math.id, "first": code.id}


def test_a_tag_is_moved_by_force_alone(history: History) -> None:
    history.tag("best")
    with pytest.raises(HistoryError, match="a tag of it"):
        history.tag("best", "code")
    history.tag("best", "code", force=True)
    assert history.stage("best") == history.stages[0]


@pytest.mark.parametrize("name", ["code", "HEAD", "base", "a b", "", "-x", "~", "a/b", "x" * 61])
def test_names_that_cannot_be_a_tag(name: str, history: History) -> None:
    for force in (False, True):
        with pytest.raises(HistoryError, match="new tag"):
            history.tag(name, "math", force=force)
    assert history.tags == {}


def test_tags_go(history: History) -> None:
    history.tag("best")
    history.untag("best")
    assert history.tags == {}
    with pytest.raises(HistoryError, match="best"):
        history.untag("best")


def test_the_base_has_a_name_already(history: History) -> None:
    with pytest.raises(HistoryError, match="Call it base"):
        history.tag("start", "base")


def test_a_free_name() -> None:
    index = made_index({"math": None, "math-2": "math"}, tags={"math-3": "math"})
    assert free_name(index, "math") == "math-4"
    assert free_name(index, "qa") == "qa"
