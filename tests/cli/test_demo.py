"""`demo`, `miniature`, `report`: what they ask of the library, and what they leave when that fails."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlforget.domains import miniature
from rlforget.domains.miniature.build import SCORES_FILE
from rlforget.domains.miniature.pretrain import SHIPPED
from tests.cli.conftest import run, unchanged


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Replace the demo, which takes minutes, by one that notes what it is asked."""
    calls: list[dict[str, Any]] = []

    def run_demo(seeds: list[int], out: Path, **options: Any) -> dict[str, Any]:
        calls.append({"seeds": seeds, "out": out, **options})
        options["echo"]("a table")
        out.mkdir(parents=True, exist_ok=True)
        (out / "results.json").write_text("{}")
        return {"runs": len(seeds)}

    monkeypatch.setattr("rlforget.experiments.demo.run_demo", run_demo)
    monkeypatch.setattr("rlforget.report.write_report", write_page)
    monkeypatch.setattr("rlforget.report.save_picture", save_picture)
    return calls


def write_page(run: Path, out: Path, *, force: bool) -> Path:
    out.write_text(f"<html>{run.name}</html>")
    return out


def save_picture(results: dict[str, Any], out: Path, *, force: bool) -> Path:
    out.write_text(json.dumps(results))
    return out


def test_demo_runs_and_reports(asked: list[dict[str, Any]], tmp_path: Path) -> None:
    out = tmp_path / "runs" / "demo"
    shown = run("demo", "--seed", 1, "--seed", 2, "--fast", "-o", out)
    assert shown.code == 0
    files = ("results.md", "demo.png", "report.html")
    assert shown.out.splitlines() == ["a table", f"wrote {out}", *(f"wrote {out / name}" for name in files)]
    assert json.loads((out / "demo.png").read_text()) == {"runs": 2}
    assert (asked[0]["seeds"], asked[0]["fast"], asked[0]["out"], asked[0]["force"]) == ([1, 2], True, out, False)
    again = run("demo", "-o", out, "--force", "--json")
    written = {"out": str(out), "report": str(out / "report.html"), "picture": str(out / "demo.png")}
    assert again.json == {"runs": 1, **written}
    assert again.err == "a table\n"
    assert (asked[1]["seeds"], asked[1]["fast"], asked[1]["force"]) == ([0], False, True)


def test_demo_replaces_runs_only_and_only_by_force(asked: list[dict[str, Any]], tmp_path: Path) -> None:
    former, thesis, file = tmp_path / "run", tmp_path / "thesis", tmp_path / "file"
    for folder, name in ((former, "results.json"), (thesis, "chapter.txt")):
        folder.mkdir()
        (folder / name).write_text("precious")
    file.write_text("precious")
    with unchanged(tmp_path):
        assert "exist" in run("demo", "-o", former).fault
        assert "no run" in run("demo", "-o", thesis, "--force").fault
        assert "no run" in run("demo", "-o", file, "--force").fault
        assert run("demo", "-o", tmp_path / "new", "--dry-run").out == f"would write {tmp_path / 'new'}\n"
        assert run("demo", "-o", tmp_path / "new", "--dry-run", "--json").json["seeds"] == [0]
    assert not asked


def building(monkeypatch: pytest.MonkeyPatch, end: BaseException | None) -> None:
    """Replace the miniature's training, which takes minutes."""

    def build(seed: int, out: Path, progress: Callable[[str, int, int, float], None], *, size: str) -> dict[str, Any]:
        assert size == SHIPPED
        for phase in ("one", "two"):
            for step in range(10):
                progress(phase, step, 10, 1.5)
        (out / "model.safetensors").write_bytes(b"weights")
        if end is not None:
            raise end
        score = {"sampled": 0.5, "sampled_stderr": 0.01, "greedy": 0.75, "greedy_stderr": 0.01}
        return {"seed": seed, "scores": {"math": score}}

    monkeypatch.setattr("rlforget.domains.miniature.build.build", build)


def test_miniature_is_written_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    building(monkeypatch, None)
    out = tmp_path / "runs" / "miniature"
    shown = run("miniature", "--seed", 5, "-o", out)
    shipped = json.loads((miniature.path() / SCORES_FILE).read_text())["scores"]["math"]
    sampled, error, greedy = (f"{shipped[key]:.3f}" for key in ("sampled", "sampled_stderr", "greedy"))
    row = ["math", "0.500", "±", "0.010", sampled, "±", error, "0.750", greedy]
    assert shown.out.splitlines()[1].split() == row
    assert shown.out.splitlines()[2] == f"wrote {out}"
    assert "one: 10/10, loss 1.500" in shown.err
    assert "two: 10/10, loss 1.500" in shown.err
    with unchanged(tmp_path):
        assert "exist" in run("miniature", "-o", out).fault
        assert run("miniature", "-o", tmp_path / "else", "--dry-run").code == 0
        assert run("miniature", "-o", tmp_path / "no" / "parent", "--dry-run", "--json").json["out"] is None
    assert run("miniature", "-o", out, "--force", "--json").json["seed"] == 0


def test_the_command_beside_the_miniature_is_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    building(monkeypatch, None)
    monkeypatch.chdir(tmp_path)
    program, *arguments = json.loads((miniature.path() / SCORES_FILE).read_text())["command"].split()
    assert program == "rlforget"
    assert run(*arguments).code == 0
    assert (tmp_path / "runs" / "miniature" / "model.safetensors").exists()


@pytest.mark.parametrize(("end", "code"), [(KeyboardInterrupt(), 130), (OSError(28, "No space left"), 1)])
def test_an_ended_miniature_leaves_nothing(
    end: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    building(monkeypatch, end)
    with unchanged(tmp_path):
        ended = run("miniature", "-o", tmp_path / "miniature")
    assert ended.code == code
    assert ended.err.splitlines()[-1].startswith("rlforget: ")


def test_report_draws_a_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("rlforget.report.write_report", write_page)
    monkeypatch.setattr("rlforget.report.page.read_run", lambda run: None)
    with unchanged(tmp_path):
        assert run("report", tmp_path, "--dry-run").out == f"would write {tmp_path / 'report.html'}\n"
    assert run("report", tmp_path).out == f"wrote {tmp_path / 'report.html'}\n"
    assert "exist" in run("report", tmp_path).fault
    assert run("report", tmp_path, "--force").code == 0
    page = tmp_path / "page.html"
    assert run("report", tmp_path, "-o", page, "--json").json == {"run": str(tmp_path), "out": str(page)}


@pytest.mark.parametrize("content", [None, "", "{}", "[1]"])
@pytest.mark.parametrize("flags", [(), ("--dry-run",)])
def test_a_folder_that_is_no_run_is_named(content: str | None, flags: tuple[str, ...], tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    with unchanged(tmp_path):
        assert str(tmp_path) in run("report", tmp_path, *flags).fault
