"""The monitor's examples run as a user runs them."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rlforget.domains import miniature
from tests.cli.conftest import run

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs an example in a folder of its own, in this process: each would import TRL anew. Returns what it printed."""

    def run_it(name: str, *arguments: str) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
        capsys.readouterr()
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return run_it


@pytest.fixture
def shipped(tmp_path: Path) -> Path:
    """The miniature as a checkpoint folder."""
    model, tokenizer = miniature.load()
    model.save_pretrained(tmp_path / "shipped")
    tokenizer.save_pretrained(tmp_path / "shipped")
    return tmp_path / "shipped"


def test_sft(example: Callable[..., str], shipped: Path, tmp_path: Path) -> None:
    assert "forgetting/damage/math" in example("monitor_sft", str(shipped), "10")
    assert len((tmp_path / "forgetting.jsonl").read_text().splitlines()) == 2


def test_grpo(example: Callable[..., str], shipped: Path, tmp_path: Path) -> None:
    assert run("init", str(shipped), "-H", str(tmp_path / "history")).code == 0
    assert "writing: " in example("monitor_grpo", str(shipped), "history", "2")
    assert "step 2" in run("log", "-H", str(tmp_path / "history")).out


def test_loop(example: Callable[..., str], shipped: Path) -> None:
    lines = example("monitor_loop", str(shipped), "10").splitlines()
    assert [line.split()[1] for line in lines] == ["0", "10"]
    assert "predicted damage to math" in lines[1]
