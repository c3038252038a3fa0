"""The study, really run on two domains; killed and gone on with."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from rlforget.errors import ConfigError
from rlforget.experiments.recovery_study import load_study, measuring, plan_of, run_study, study
from rlforget.experiments.recovery_study.bars import BARS
from rlforget.experiments.recovery_study.courses import courses
from rlforget.experiments.recovery_study.jobs import Job, run_jobs
from rlforget.experiments.recovery_study.rules import SCORES
from rlforget.experiments.recovery_study.scene import Live, Lost
from rlforget.experiments.recovery_study.table import COLUMNS, read_table
from rlforget.training import StageConfig, StageResult, sequence
from rlforget.training.progress import Silent
from tests.experiments.recovery_study.made import stamps, tiny

CONFIG = Path(__file__).parents[3] / "configs" / "miniature.yaml"


@pytest.fixture(autouse=True)
def everything_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps lose nothing to speak of."""
    monkeypatch.setattr(Lost, "counts", property(lambda self: True))


def _run_all(names: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Run these measurements on a pair, holding each to leave the model's bits as they were; the table's rows."""
    seen: dict[str, bool] = {}

    def watched(name: str) -> measuring.Measure:
        measure = measuring.MEASURES[name]

        def call(live: Live) -> list[dict[str, Any]]:
            before = {key: value.clone() for key, value in live.model.state_dict().items()}
            rows = list(measure(live))
            after = live.model.state_dict()
            seen[name] = all(torch.equal(value, after[key]) for key, value in before.items())
            return rows

        return call

    watchers = {name: watched(name) for name in names}
    monkeypatch.setattr(measuring, "MEASURES", watchers)
    monkeypatch.setattr(measuring, "IN_PART", {"pairs": names, "sequence": names[:1]})
    written = run_study(
        tiny(), tmp_path, bases=tmp_path, parts=("pairs", "sequence"), progress=Silent(), command="rlforget experiment"
    )
    assert seen == dict.fromkeys(names, True)
    rows = read_table(tmp_path / study.TABLE)
    assert {row["measure"] for row in rows} == {*names, None}
    assert set(rows[0]) == set(COLUMNS)
    page = (tmp_path / study.PAGE).read_text(encoding="utf-8")
    assert all(bar.what.format_map(tiny().model_dump()) in page for bar in BARS)
    assert {path.name for path in written} >= {study.TABLE, study.PAGE, "recovery-stages.png"}
    return rows


def test_a_study_is_trained_measured_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = _run_all(("dense", "coordinates"), tmp_path, monkeypatch)
    for row in rows:
        if row["after"] is not None and row["then"] != row["now"]:
            assert math.isclose(row["regained"], (row["after"] - row["now"]) / (row["then"] - row["now"]), rel_tol=1e-3)
    for score in SCORES:
        assert [row["budget"] for row in rows if row["rule"] == score] == [0.02]
    assert [row["passes"] for row in rows if row["rule"] == "dense subspace" and row["part"] == "pairs"] == [1, 2]


@pytest.mark.slow
def test_every_measurement_leaves_the_model_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beyond = ("selectivity", "peaks", "auto", "growth")  # for several older domains, or for minutes
    _run_all(tuple(name for name in measuring.MEASURES if name not in beyond), tmp_path, monkeypatch)


def test_a_killed_run_goes_on_and_repeats_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in the second stage, then in the second measurement."""
    trained: list[str] = []
    measured: list[str] = []

    def train(model: Any, tokenizer: Any, stage: StageConfig, **options: Any) -> StageResult:
        trained.append(str(stage.name))
        if len(trained) == 2:
            raise KeyboardInterrupt
        with torch.no_grad():
            next(model.parameters()).add_(0.01)
        return StageResult(str(stage.name), stage.domain, stage.method, 1, 0.1, False, (0.5,), (0.1,))

    def measure(live: Live) -> list[dict[str, Any]]:
        measured.append(live.scene.name)
        if len(measured) == 2:
            raise KeyboardInterrupt
        return [live.row("made", value=float(len(measured)))]

    monkeypatch.setattr(sequence, "train_stage", train)
    monkeypatch.setattr(measuring, "MEASURES", {"one": measure, "two": measure})
    monkeypatch.setattr(measuring, "IN_PART", {"pairs": ("one", "two"), "sequence": ("one",)})
    arguments: dict[str, Any] = {
        "bases": tmp_path,
        "parts": ("pairs", "sequence"),
        "progress": Silent(),
        "command": "it",
    }

    def done() -> list[str]:
        planned = plan_of(tiny(), tmp_path, bases=tmp_path, parts=("pairs", "sequence"))
        return [f"{count.done}/{count.all} {name}" for name, count in planned.items()]

    assert done() == ["1/1 bases", "0/3 stages", "0/2 scenes"]
    for stages in ("1/3 stages", "3/3 stages"):
        with pytest.raises(KeyboardInterrupt):
            run_study(tiny(), tmp_path, **arguments)
        assert done() == ["1/1 bases", stages, "0/2 scenes"]
    made = stamps(tmp_path)
    run_study(tiny(), tmp_path, **arguments)
    assert done()[-1] == "2/2 scenes"
    assert {path: stamp for path, stamp in stamps(tmp_path).items() if path in made} == made
    assert trained == ["math", "math-writing", "math-writing", "then-writing"]
    assert measured == ["pairs-math-writing"] * 3 + ["sequence-then-writing"]
    values = [row["value"] for row in read_table(tmp_path / study.TABLE) if row["rule"] == "made"]
    assert values == [1, 3, 4]
    with pytest.raises(ConfigError, match="key samples"):
        plan_of(tiny(samples=7), tmp_path, bases=tmp_path)


def test_the_plan_trains_a_shared_stage_once_and_tries_every_ordered_pair(tmp_path: Path) -> None:
    whole = load_study(CONFIG)
    planned = courses(whole, tmp_path, tmp_path)
    main = [course for course in planned if course.base.name == "miniature"]
    assert len(main) == len(whole.seeds) * len(whole.methods) >= 6
    for course in planned:
        names = [stage.name for stage in course.config.stages]
        assert len(names) == len(set(names))
        known = {"base", *names}
        assert all(stage.parent in known for stage in course.config.stages)
        assert all({scene.then, scene.now} <= known for scene in course.scenes)
        assert len({course.folder for course in planned}) == len(planned)
    pairs = [scene for scene in main[0].scenes if scene.part == "pairs"]
    assert {(scene.earlier, scene.later) for scene in pairs} == {
        ((a,), (b,)) for a in whole.domains for b in whole.domains if a != b
    }
    assert len({course.base.name for course in planned if any(s.part == "bases" for s in course.scenes)}) >= 3
    assert len({course.base.size for course in planned if any(s.part == "sizes" for s in course.scenes)}) >= 3


def test_the_stages_of_a_part_are_the_same_whatever_parts_are_asked_for(tmp_path: Path) -> None:
    whole = load_study(CONFIG)
    alone = courses(whole, tmp_path, tmp_path, ("sequence",))[0]
    together = courses(whole, tmp_path, tmp_path)[0]
    assert alone.config == together.config
    assert {scene.part for scene in alone.scenes} == {"sequence"}


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a scene be looked at whose stages are not trained."""
    monkeypatch.setattr(Lost, "__init__", lambda self, study, course, scene: setattr(self, "scene", scene))


@pytest.mark.usefixtures("untrained")
def test_a_costly_measurement_takes_turns_so_that_seeds_share_the_pairs(tmp_path: Path) -> None:
    whole = load_study(CONFIG).model_copy(update={"one_in": {"refresh": 3}})
    turns = [
        scene.name
        for course in courses(whole, tmp_path, tmp_path, ("pairs",))
        if course.method == "grpo" and course.base.name == "miniature"
        for scene in course.scenes
        if measuring._is_turn(whole, course, scene, "refresh")
    ]
    assert sorted(turns) == sorted(set(turns))
    assert len(turns) == 12


@pytest.mark.usefixtures("untrained")
def test_turns_go_by_the_pairs_that_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that pairs which lost nothing use up no turns."""
    whole = load_study(CONFIG).model_copy(update={"one_in": {"auto": 3}})
    monkeypatch.setattr(Lost, "counts", property(lambda self: self.scene.earlier == ("math",)))
    for course in courses(whole, tmp_path, tmp_path, ("pairs",)):
        turns = [scene for scene in course.scenes if "auto" in measuring.wanted(whole, course, scene)]
        assert len(turns) == (1 if course.base.name == "miniature" else 0)


def _note(folder: Path, number: int) -> None:
    (folder / f"{number}.json").write_text(json.dumps(torch.get_num_threads()))


@pytest.mark.parametrize("processes", [1, 2])
def test_jobs_do_what_is_not_done_on_one_thread_each(tmp_path: Path, processes: int) -> None:
    (tmp_path / "0.json").write_text("done before")
    jobs = [
        Job(_note, (tmp_path, number), (tmp_path / f"{number}.json").exists, 1)  # type: ignore[arg-type]
        for number in range(3)
    ]
    run_jobs("notes", jobs, processes=processes, progress=Silent())
    assert (tmp_path / "0.json").read_text() == "done before"
    assert [(tmp_path / f"{number}.json").read_text() for number in (1, 2)] == ["1", "1"]


def _fail() -> None:
    raise ValueError("a job that fails")


def test_what_a_job_raises_is_raised(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a job that fails"):
        run_jobs("failing", [Job(_fail, (), lambda: 0, 1)], processes=2, progress=Silent())


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_short_form_of_the_whole_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # what counts is what counts
    short = load_study(CONFIG).fast()
    run_study(short, tmp_path, bases=tmp_path / "bases", processes=2, progress=Silent(), command="it")
    rows = read_table(tmp_path / study.TABLE)
    dense = [row for row in rows if row["rule"] == "dense subspace" and row["passes"] == 2]
    assert dense
    assert sum(row["regained"] for row in dense) / len(dense) > 0.6
    assert max(row["regained"] for row in rows if row["rule"] == "random subspace") < 0.4
