"""The suite for a GPU, on a CPU and a tiny model: all of it runs, keeps to its time, and needs next to nothing."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

import rlforget as rf
from benchmarks.checkpoint_pair import SHAPES
from benchmarks.gpu import __main__ as suite
from benchmarks.gpu import one_section
from benchmarks.gpu.completions import Lengths, batches, log_prob
from benchmarks.gpu.model import CausalLM
from benchmarks.gpu.pair import pair
from benchmarks.gpu.sections import SECTIONS, TOTAL
from benchmarks.harness import Case, Machine
from benchmarks.report.bars import BARS
from rlforget.interference.completions import completion_log_probs
from tests.gpu import at_hand

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
QUICK = Machine(CPU, 4096, quick=True)

THERE = {"torch", "triton", "numpy", "safetensors", "numba", "scipy", "einops", "pytest", "pytest_benchmark"}
"""The packages on a GPU machine that the suite may need, besides what those need."""

NOT_THERE = """
import importlib.machinery
import sys

class Finder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {blocked!r} else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Finder
"""


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """The environment of processes that find nothing of what rlforget, its extras and its tests use but `THERE`."""
    blocked = {
        *("accelerate", "datasets", "hypothesis", "jsonschema", "matplotlib", "peft", "plotly", "pydantic", "rich"),
        *("reasoning_gym", "transformers", "trl", "typer", "xdist", "xxhash", "yaml", "zstandard"),
    }
    assert not blocked & THERE
    (tmp_path / "sitecustomize.py").write_text(NOT_THERE.format(blocked=blocked))
    path = os.pathsep.join(map(str, (tmp_path, ROOT, ROOT / "kernels")))
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return kept | {"PYTHONPATH": path, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}


def test_one_command_on_a_bare_machine(bare: dict[str, str], tmp_path: Path):
    absent = subprocess.run([sys.executable, "-c", "import hypothesis"], env=bare, capture_output=True, text=True)
    assert "No module named 'hypothesis'" in absent.stderr
    command = [sys.executable, "-m", "benchmarks.gpu", "model", "--device", "cpu", "--quick", "--results"]
    done = subprocess.run([*command, str(tmp_path / "r")], cwd=ROOT, env=bare, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = (tmp_path / "r").iterdir()
    found = json.loads(path.read_text())
    assert {"date", "versions", "copy_bytes_per_second"} <= found["environment"].keys()
    assert found["environment"]["versions"]["triton"]
    cases = [record["case"] for record in found["model"]]
    assert cases == [case for _, case in SECTIONS["model"].cases()]
    for record in found["model"]:
        assert {"ours", "torch", "ceiling"} <= record["seconds"].keys()
        assert record["peak_bytes"]["ours"] is None or record["peak_bytes"]["ours"] > 0
    assert found["sections"]["model"]["left_out"] == found["sections"]["model"]["failed"] == []


FOUND = """
import sys
import pytest
import rlforget as rf
from benchmarks.gpu.sections import SECTIONS

print([len(section.cases()) for section in SECTIONS.values()], rf.fisher, rf.conflict_subspace, rf.rollback, rf.Tracker)
options = ["-q", "--collect-only", "-m", "gpu", "-p", "tests.gpu.at_hand", "--hypothesis-profile", "thorough"]
sys.exit(pytest.main([*options, "tests/gpu"]))
"""


def test_all_sections_and_the_tests_of_the_device_are_found_on_a_bare_machine(bare: dict[str, str]):
    done = subprocess.run([sys.executable, "-c", FOUND], cwd=ROOT, env=bare, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for file in (ROOT / "tests" / "gpu").glob("test_*.py"):
        assert f"tests/gpu/{file.name}::" in done.stdout


def test_gradients():
    fisher, subspace = (SECTIONS[name].cases() for name in ("fisher", "subspace"))
    *solved, written, _ = subspace  # solved at sizes that are one here
    found: list[dict[str, Any]] = []
    cases = {**fisher, **{name: subspace[name] for name in (solved[0], written)}}
    one_section.measure(cases, QUICK, float("inf"), found.append)
    assert [line["record"]["case"] for line in found] == [case for _, case in cases]


def test_cases_of_bars_come_first():
    bars = {(bar.operator, bar.case) for bar in BARS}
    asked = [name in bars for name in SECTIONS["operators"].cases()]
    assert any(asked)
    assert asked == sorted(asked, reverse=True)
    assert ("model", "diff and stats") in SECTIONS["model"].cases()


def test_the_sections_share_the_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    given: list[float] = []

    def section(name: str, seconds: float, flags: object) -> dict[str, Any]:
        given.append(seconds)
        now[0] += seconds / 2  # half of it is left to the others
        environment = {"gpu": "Some GPU", "date": "2026-01-31"}
        return {"environment": environment, "records": [], "left_out": [], "failed": [], "seconds": seconds / 2}

    now = [0.0]
    monkeypatch.setattr(suite, "_section", section)
    monkeypatch.setattr(suite, "time", SimpleNamespace(monotonic=lambda: now[0]))
    suite.run(list(SECTIONS), TOTAL, [], tmp_path)
    whole = sum(one.seconds for one in SECTIONS.values())
    assert given[0] == pytest.approx(TOTAL * SECTIONS["model"].seconds / whole)
    assert given[-1] == pytest.approx(TOTAL - sum(given[:-1]) / 2)  # all that is left
    assert sum(given) / 2 < TOTAL < 9 * 60
    given.clear()
    suite.run(["subspace"], 30.0, [], tmp_path)
    assert given == [pytest.approx(30.0)]


def test_a_case_that_fails_or_comes_too_late_is_named_and_keeps_no_other_from_running(monkeypatch: pytest.MonkeyPatch):
    def of(agrees: bool) -> Callable[[Machine], Case]:
        return lambda machine: Case(16, ours=lambda: None, peers={}, agree=lambda: agrees)

    monkeypatch.setattr(one_section, "time", SimpleNamespace(monotonic=iter([0.0, 1.0, 2.0]).__next__))
    found: list[dict[str, Any]] = []
    cases = {("model", name): of(name != "wrong") for name in ("wrong", "in time", "late")}
    one_section.measure(cases, QUICK, 1.0, found.append)
    assert found[0]["failed"] == {"operator": "model", "case": "wrong"}
    assert "different results" in found[0]["why"]
    assert found[1]["record"]["case"] == "in time"
    assert found[2] == {"left_out": {"operator": "model", "case": "late"}, "why": "no time was left"}


HANGING = """#!{python}
import json, sys, time
out = sys.argv[sys.argv.index("--out") + 1]
one = {{"operator": "model", "case": "one"}}
record = one | {{"seconds": {{"ours": 1.0, "torch": 2.0}}}}
environment = {{"device": "cuda", "gpu": "Some GPU", "date": "2026-01-31"}}
with open(out, "w") as file:
    for line in ({{"environment": environment}}, {{"cases": [one, one | {{"case": "two"}}]}}, {{"record": record}}):
        print(json.dumps(line), file=file, flush=True)
    print(json.dumps({{"record": one}})[:20], end="", file=file, flush=True)
{end}
"""


@pytest.mark.parametrize(
    ("end", "kind", "why"), [("time.sleep(60)", "left_out", "stopped"), ("sys.exit(3)", "failed", "code 3")]
)
def test_a_section_that_hangs_or_dies_leaves_what_it_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str, kind: str, why: str
):
    other = {"operator": "model", "case": "of another section", "section": "fisher"}
    written = tmp_path / "some-gpu-2026-01-31.json"
    written.write_text(json.dumps({"model": [other], "sections": {"fisher": {}}}))
    python = tmp_path / "python"
    python.write_text(HANGING.format(python=sys.executable, end=end))
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    start = time.monotonic()
    path, well = suite.run(["model"], 1.5, [], tmp_path)
    assert time.monotonic() - start < 10
    assert path == written
    assert well == (kind == "left_out")
    found = json.loads(path.read_text())
    assert [record["case"] for record in found["model"]] == ["of another section", "one"]
    (missing,) = found["sections"]["model"][kind]
    assert missing["case"] == "two"
    assert why in missing["why"]


def test_without_a_gpu_the_command_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert suite.main([]) == 1
    assert "torch finds none" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        suite.main(["no-such-section"])
    assert "no-such-section" in capsys.readouterr().err


def test_the_model_computes_what_transformers_does():
    shape = SHAPES["tiny"]
    weights = pair(shape, CPU)
    for side in (weights.before, weights.after):
        theirs = Qwen2ForCausalLM(Qwen2Config(**shape.config(), rope_theta=1e6)).bfloat16().eval()
        theirs.load_state_dict({**side, "lm_head.weight": side["model.embed_tokens.weight"]})
        ours = CausalLM(shape, side)
        (batch,) = batches(shape.vocabulary, Lengths(4, 8, 4), 4, CPU, seed=0)
        with torch.no_grad():
            logits = ours(batch["input_ids"]).logits.float()
            expected = theirs(input_ids=batch["input_ids"]).logits.float()
            assert torch.allclose(ours(batch["input_ids"], logits_to_keep=3).logits.float(), logits[:, -3:], atol=1e-2)
            whole = completion_log_probs(ours, batch).sum()
            assert float(log_prob(ours, batch)) == pytest.approx(float(whole), rel=1e-3)
        assert (logits - expected).norm() <= 0.01 * expected.norm()


def test_the_change_is_that_of_a_fine_tune_with_a_small_learning_rate():
    weights = pair(SHAPES["tiny"], CPU)
    delta = rf.diff(weights.before, weights.after)
    assert delta.changed / delta.numel == pytest.approx(0.0114, rel=0.03)
    assert delta.stats().total.unit_step_share > 0.6


def test_without_hypothesis_examples_are_drawn_alike_in_every_run_and_a_failing_one_is_named():
    def draw() -> list[tuple[int, list[int], object]]:
        found = []

        @at_hand.settings(max_examples=200)
        @at_hand.given(number=at_hand.integers(-3, 3), some=at_hand.lists(at_hand.just(7), max_size=2), data=data)
        def test(fixture: str, number: int, some: list[int], data: at_hand.Data) -> None:
            assert fixture == "given by pytest"
            found.append((number, some, data.draw(at_hand.one_of(at_hand.floats(0, 1), at_hand.sampled_from("ab")))))

        assert list(inspect.signature(test).parameters) == ["fixture"]
        test(fixture="given by pytest")
        return found

    data = at_hand.STRATEGIES["data"]()
    drawn = draw()
    assert drawn == draw()
    assert len(drawn) == 200
    assert {number for number, *_ in drawn} == set(range(-3, 4))
    assert {len(some) for _, some, _ in drawn} == {0, 1, 2}

    @at_hand.given(at_hand.integers(0, 9))
    def fails(number: int) -> None:
        assert number < 8

    with pytest.raises(AssertionError) as caught:
        fails()
    assert caught.value.__notes__[0].endswith(("{'number': 8}", "{'number': 9}"))
