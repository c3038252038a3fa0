"""What names a stage."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlforget.errors import HistoryError
from rlforget.history.index import Index
from rlforget.history.references import resolve
from tests.history.made import BASE, made_index

INDEX = made_index({"code": None, "math": "code", "qa": "math", "other": "code"}, tags={"best": "math"})
CODE, MATH, QA, OTHER = INDEX.stages


@pytest.mark.parametrize(
    ("reference", "stage"),
    [
        ("HEAD", OTHER),
        ("@", OTHER),
        ("HEAD~1", CODE),
        ("HEAD~", CODE),
        ("HEAD^", CODE),
        ("HEAD~2", None),
        ("base", None),
        ("base~0", None),
        ("math", MATH),
        ("best", MATH),
        ("best~", CODE),
        ("qa~2", CODE),
        ("qa^^", CODE),
        ("qa~1^", CODE),
        ("qa~3", None),
        ("qa~0", QA),
        (QA.id, QA),
        (QA.id[:12], QA),
        (QA.id[:12].upper() + "~", MATH),
        (None, None),
        (QA, QA),
    ],
)
def test_what_names_a_stage(reference: str, stage: object) -> None:
    assert resolve(INDEX, reference) is stage


@pytest.mark.parametrize(
    "reference",
    ["", "nothing", "HEAD~9", "base~1", "base^", "~1", "math~x", "math~-1", "../base", "math^2", "a b", "\n"],
)
def test_what_names_none(reference: str) -> None:
    with pytest.raises(HistoryError, match="stage"):
        resolve(INDEX, reference)


def test_a_stage_of_another_history() -> None:
    (foreign,) = made_index({"math": None}).stages
    with pytest.raises(HistoryError, match="not in this history"):
        resolve(INDEX, foreign)


def test_the_head_of_nothing_is_the_base() -> None:
    assert resolve(Index(BASE), "HEAD") is None


def test_a_beginning_of_two_ids_is_refused_with_both() -> None:
    twins = tuple(replace(stage, id="abcd" + stage.id[4:]) for stage in (CODE, OTHER))
    index = Index(BASE, twins)
    with pytest.raises(HistoryError, match=r"abcd.* code, abcd.* other.*more digits"):
        resolve(index, "abcd")
    assert resolve(index, twins[0].id[:8]) is twins[0]


def test_a_name_goes_before_digits() -> None:
    index = made_index({"cafe": None, "math": "cafe"})
    cafe = index.stages[0]
    twin = replace(index.stages[1], id="cafe" + cafe.id[4:], name="twin")
    assert resolve(replace(index, stages=(cafe, twin)), "cafe") is cafe


def test_three_digits_are_too_few() -> None:
    with pytest.raises(HistoryError):
        resolve(INDEX, QA.id[:3])


@given(st.text(max_size=12))
def test_any_text_names_a_stage_or_is_refused(text: str) -> None:
    try:
        found = resolve(INDEX, text)
    except HistoryError:
        return
    assert found is None or found in INDEX.stages


@given(st.lists(st.sampled_from(["~", "^", "~0", "~2"]), max_size=4))
def test_steps_add_up(steps: list[str]) -> None:
    up = sum({"~": 1, "^": 1, "~0": 0, "~2": 2}[step] for step in steps)
    line = [QA, MATH, CODE, None]
    if up < len(line):
        assert resolve(INDEX, "qa" + "".join(steps)) is line[up]
    else:
        with pytest.raises(HistoryError, match="no parent"):
            resolve(INDEX, "qa" + "".join(steps))
