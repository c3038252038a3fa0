"""docs/history.md: its commands run, in order, and its code says the truth."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from rlforget.history import History
from tests.cli.conftest import Checkpoints, checkpoints, run  # noqa: F401

PAGE = (Path(__file__).parents[2] / "docs" / "history.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.M | re.S)


def test_the_commands_and_the_code(
    checkpoints: Checkpoints,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("base", "math", "fixed"):
        shutil.copytree(checkpoints.base, tmp_path / name)
    shutil.copytree(checkpoints.tuned, tmp_path / "code")
    (tmp_path / "math.yaml").write_text("steps: 60")
    monkeypatch.chdir(tmp_path)
    (commands,) = (block for block in blocks("sh") if "rlforget init" in block)
    for line in commands.splitlines():
        words = shlex.split(line, comments=True)
        if words[0] == "cd":
            monkeypatch.chdir(words[1])
        else:
            ended = run(*words[1:])
            assert ended.code == 0, ended
    drawn = [re.sub(r"[0-9a-f]{8} ", "", line) for line in ended.out.splitlines()]
    (shown,) = re.findall(r"^```\n(\* .*?)^```", PAGE, flags=re.M | re.S)
    assert drawn == [re.sub(r"[0-9a-f]{8} ", "", line) for line in shown.splitlines()]
    monkeypatch.chdir(tmp_path)
    (check,) = (block for block in blocks("python") if "hashlib" in block)
    exec(compile(check, "docs/history.md", "exec"), {})
    history = History.open("history")
    assert set(history.stages[0].stats) == _documented_stats()


def _documented_stats() -> set[str]:
    """The keys of `stats` that the page names: the row's words in code, and the three sparsities."""
    row = next(line for line in PAGE.splitlines() if line.startswith("| `stats`"))
    words = set(re.findall(r"`(\w+)`", row)) - {"stats", "total"}
    return words | {"sparsity_absolute", "sparsity_relative"}
