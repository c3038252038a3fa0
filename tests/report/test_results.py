"""Reading results: what is ours is read, and anything else is refused by name."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlforget.errors import ReportError
from rlforget.experiments.demo import RESULTS_FILE as WRITTEN_FILE
from rlforget.report import write_report
from rlforget.report.results import RESULTS_FILE, parse_results, read_results
from tests.report.pages import page_of


def test_reader_and_writer_name_the_same_file() -> None:
    assert RESULTS_FILE == WRITTEN_FILE


def test_a_run_is_read(run: Path, results: dict[str, Any]) -> None:
    read = read_results(run)
    assert [one.seed for one in read.runs] == [0, 1]
    first, raw = read.runs[0], results["runs"][0]
    assert [stage.rewards for stage in first.stages] == [stage["rewards"] for stage in raw["stages"]]
    assert first.stages[0].delta is None
    assert [(repair.rule, repair.fraction) for repair in first.repairs] == [
        (repair["rule"], repair["fraction"]) for repair in raw["repairs"]
    ]
    for stage, wanted in zip(first.stages[1:], raw["stages"][1:], strict=True):
        assert stage.delta is not None
        total = wanted["delta"]["total"]
        changes = stage.delta.places.values()
        assert sum(change.changed for change in changes) == total["changed"]
        assert sum(change.numel for change in changes) == total["numel"]
        assert math.sqrt(sum(change.squares for change in changes)) == pytest.approx(total["l2"])
        assert stage.delta.kinds["embedding"].numel == wanted["delta"]["kinds"]["embedding"]["numel"]
        assert (
            stage.delta.places[3, "up_proj"].changed
            == (wanted["delta"]["tensors"]["model.layers.3.mlp.up_proj.weight"]["changed"])
        )


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(ReportError, match=r"a run's folder, with results\.json"):
            write_report(folder, tmp_path / "page.html")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["", "{", "\x00", "[" * 100_000, "\xff", '{"format": ' + "9" * 5000 + "}"])
def test_a_file_that_is_no_json_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / RESULTS_FILE).write_text(text, encoding="latin-1")
    with pytest.raises(ReportError, match=r"results\.json: expected a readable JSON file"):
        read_results(tmp_path)


def test_a_folder_in_the_place_of_the_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / RESULTS_FILE).mkdir()
    with pytest.raises(ReportError, match="readable JSON file"):
        read_results(tmp_path)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"format": "tensorboard"}, "format 'tensorboard', version 1"),
        ({"version": 2}, "format 'rlforget-demo', version 2"),
        ({"version": True}, "version True"),
        ({"format": None}, "format None"),
    ],
)
def test_another_format_or_version_is_refused(results: dict[str, Any], change: dict[str, Any], found: str) -> None:
    with pytest.raises(ReportError, match="format rlforget-demo, version 1") as caught:
        parse_results({**results, **change})
    assert found in caught.value.found


@pytest.mark.parametrize("value", [None, [], "text", 3])
def test_json_that_is_no_object_is_refused(value: Any) -> None:
    with pytest.raises(ReportError, match="an object"):
        parse_results(value)


@pytest.mark.parametrize(
    ("way", "value", "expected"),
    [
        (("runs",), [], "at least one run"),
        (("runs", 1, "stages"), [], "the same stages"),
        (("runs", 0, "seed"), "0", "runs[0].seed: expected an integer"),
        (("runs", 0, "seed"), -1, "runs[0].seed: expected an integer"),
        (("runs", 1, "repairs", 2, "regained"), "all", "runs[1].repairs[2].regained: expected a number"),
        (("runs", 0, "repairs", 0, "kept"), True, "runs[0].repairs[0].kept: expected a number"),
        (("runs", 0, "stages", 1, "rewards"), None, "runs[0].stages[1]: expected an object with the key 'rewards'"),
        (("runs", 0, "stages", 1, "delta", "tensors"), [], "runs[0].stages[1].delta.tensors: expected an object"),
        (("runs", 0, "sft_and_rl", "sft", "steps"), 1.5, "runs[0].sft_and_rl.sft.steps: expected an integer"),
    ],
)
def test_damage_is_named_by_its_place(
    results: dict[str, Any], way: tuple[str | int, ...], value: Any, expected: str
) -> None:
    _put(results, way, value)
    with pytest.raises(ReportError) as caught:
        parse_results(results, "runs/demo/results.json")
    assert expected in str(caught.value)
    assert str(caught.value).startswith("runs/demo/results.json: ")
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("value", [None, math.nan, math.inf, 10**400])
def test_a_number_that_could_not_be_told_is_a_dash(results: dict[str, Any], value: Any) -> None:
    for run in results["runs"]:
        run["repairs"][0]["regained"] = value
    page = page_of(json.loads(json.dumps(results)))
    assert "–" in page.texts("td")
    assert not [text for text in page.texts("td") + page.texts("li") if "nan" in text or "inf" in text]


def _ways(value: Any, way: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """The way to every value that a report reads; of all tensors, one."""
    below: list[tuple[str | int, ...]] = [way] if way else []
    items = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    for key, item in items[:1] if way[-1:] == ("tensors",) else items:
        if key not in ("layers", "kinds", "summary"):
            below += _ways(item, (*way, key))
    return below


def _put(value: Any, way: tuple[str | int, ...], new: Any) -> None:
    for key in way[:-1]:
        value = value[key]
    value[way[-1]] = new


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, -1, 1e308, -1e308, 5e-324, 10**400, math.nan, math.inf])
    | st.text(max_size=5)
    | st.sampled_from(["base", "code", "<b>", "%{x}", "\x00\ud800"])
)
JUNK = SCALARS | st.lists(SCALARS, max_size=2) | st.dictionaries(st.text(max_size=3), SCALARS, max_size=2)


@settings(max_examples=150)
@given(st.data())
def test_anything_becomes_a_page_or_a_named_error(made: str, data: st.DataObject) -> None:
    results = json.loads(made)
    ways = _ways(results)
    for _ in range(data.draw(st.integers(1, 3), "changes")):
        way = data.draw(st.sampled_from(ways), "where")
        with suppress(KeyError, IndexError, TypeError):  # an earlier change may have taken the place away
            _put(results, way, data.draw(JUNK, "what"))
    try:
        page = page_of(results)
    except ReportError:
        return
    assert "origin" in [given.get("id") for name, given, _ in page.elements if name == "section"]
