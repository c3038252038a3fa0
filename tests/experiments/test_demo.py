"""The demo, really run: tiny in the test command, whole in the slow suite."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from rlforget.errors import OutputError
from rlforget.experiments import demo
from rlforget.experiments.settings import EARLIER, FULL, LATER, SEQUENCE, Settings
from rlforget.report.measured_files import read_damage, read_subspace
from rlforget.training.progress import Silent

TINY = Settings(
    steps=(2, 2, 2, 3), evaluation_prompts=32, samples=16, damage_samples=4, refresh_steps=1, target_reward=0.3
)


def test_every_part_of_the_main_job_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "FAST", TINY)
    lines: list[str] = []
    results = demo.run_demo([5], tmp_path / "demo", fast=True, echo=lines.append, progress=Silent())
    assert json.loads((tmp_path / "demo" / demo.RESULTS_FILE).read_text()) == json.loads(json.dumps(results))
    (run,) = results["runs"]
    assert [stage["name"] for stage in run["stages"]] == ["base", *SEQUENCE]
    assert all(0.0 <= reward <= 1.0 for stage in run["stages"] for reward in stage["rewards"].values())
    assert all(stage["delta"]["total"]["changed"] > 0 for stage in run["stages"][1:])
    rules = {repair["rule"] for repair in run["repairs"]}
    assert {"fisher", "two_fisher", "subspace", "magnitude", "random", "dense subspace", "refresh"} <= rules
    assert len(run["overlaps"]) == 6
    for repair in run["repairs"]:
        assert set(repair["stderr"]) == set(SEQUENCE)
        assert all(repair[key] >= 0.0 for key in ("regained_stderr", "kept_stderr") if math.isfinite(repair[key]))
    prints = [stage["weights"] for stage in run["stages"]]
    assert len({run["base_weights"], *prints}) == len(prints) == 5
    folder = tmp_path / "demo" / "seed-5"
    damages, subspace = read_damage(folder), read_subspace(folder)
    assert damages is not None
    assert subspace is not None
    assert [one.domain for one in damages] == list(EARLIER)
    assert all(one.count == subspace.samples == TINY.damage_samples for one in damages)
    assert all(one.tensors for one in damages)
    for compared in (run["sft_and_rl"], run["sft_and_rl_of_one_length"]):
        assert compared["start"]["rewards"] == run["stages"][-2]["rewards"]
        assert {"grpo", "sft"} <= set(compared)
    assert run["sft_and_rl_of_one_length"]["grpo"]["rewards"] == run["stages"][-1]["rewards"]
    assert len(list((tmp_path / "demo").rglob("*.delta.safetensors"))) == len(SEQUENCE)
    assert max(map(len, lines)) <= 100
    assert "`rlforget demo --seed 5 --fast`" in (tmp_path / "demo" / demo.PAGE_FILE).read_text()


def test_what_is_not_a_former_run_is_never_deleted(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    for force in (False, True):
        with pytest.raises(OutputError, match="Choose another folder"):
            demo.run_demo([0], tmp_path, echo=lambda _: None, progress=Silent(), force=force)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


class StopAt(Silent):
    """Interrupts when a task begins, as Ctrl-C would."""

    def __init__(self, title: str) -> None:
        self._title = title

    def start(self, title: str, total: int) -> None:
        if title.startswith(self._title):
            raise KeyboardInterrupt


def test_an_interrupted_run_leaves_the_former_one_and_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "FAST", TINY)
    out = tmp_path / "demo"
    out.mkdir()
    (out / demo.RESULTS_FILE).write_text("former")
    with pytest.raises(KeyboardInterrupt):
        demo.run_demo([0], out, fast=True, echo=lambda _: None, progress=StopAt("math (grpo)"), force=True)
    assert (out / demo.RESULTS_FILE).read_text() == "former"
    finished = tmp_path / "demo.unfinished" / "seed-0" / "stages" / "01-code" / "stage.json"
    written = finished.stat().st_mtime_ns
    with pytest.raises(KeyboardInterrupt):
        demo.run_demo([0], out, fast=True, echo=lambda _: None, progress=StopAt("qa (grpo)"), force=True)
    assert finished.stat().st_mtime_ns == written
    assert len(list(finished.parents[1].iterdir())) == 3  # base, code, math


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_effect_is_there(tmp_path: Path) -> None:
    """The bars of docs/demo.md, on one seed, with the slack that one seed needs."""
    results = demo.run_demo([0], tmp_path / "demo", echo=lambda _: None, progress=Silent())
    (run,) = results["runs"]
    found = {(repair["rule"], repair["fraction"]): repair for repair in run["repairs"]}
    assert FULL.samples <= 512
    assert max(run["lost"].values()) >= 0.10
    assert min(run["stages"][-1]["rewards"][name] for name in LATER) > 0.9
    assert set(run["lost"]) == set(EARLIER)
    assert found["dense subspace", None]["regained"] >= 0.85
    assert found["dense subspace", None]["kept"] >= 0.90
    assert found["subspace", 0.02]["regained"] >= 0.80
    assert found["fisher", 0.05]["regained"] >= 0.70
    assert found["random", 0.02]["regained"] <= 0.30
    assert found["random subspace", None]["regained"] <= 0.30
