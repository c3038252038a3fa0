"""Every block of the README runs, in the order it is read, on checkpoints of the names it uses."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from rlforget.experiments.settings import SEQUENCE
from rlforget.training import EvaluationConfig, SequenceConfig, StageConfig, run_sequence
from tests.cli.conftest import run

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.M | re.S)


@pytest.fixture(scope="module")
def folder_of_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `runs/demo/seed-0`: the demo's sequence, one step a stage."""
    folder = tmp_path_factory.mktemp("readme")
    stages = [StageConfig(domain=name, method="sft", steps=1, prompts=8, learning_rate=1e-2) for name in SEQUENCE]
    evaluation = EvaluationConfig(domains=["math"], count=4)
    config = SequenceConfig(model="miniature", stages=stages, evaluation=evaluation)
    (folder / "runs" / "demo").mkdir(parents=True)
    run_sequence(config, folder / "runs" / "demo" / "seed-0", progress=False)
    return folder


@pytest.fixture(autouse=True)
def inside(folder_of_runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder_of_runs)


def small(block: str) -> str:
    """The block on a quarter of its samples."""
    return re.sub(r"((?:samples|count)[= ])64\b", r"\g<1>16", block)


def shell(block: str) -> str:
    """Run a block's commands, words and comments split as a shell does it, in this process: each would load torch anew.

    Returns:
        What they printed.
    """
    printed = ""
    for line in block.splitlines():
        program, *arguments = shlex.split(line, comments=True)
        if program == "cd":
            os.chdir(*arguments)
            continue
        assert program == "rlforget"
        done = run(*arguments)
        assert done.code == 0, (line, done)
        printed += done.out
    return printed


def test_library_and_command_line_examples() -> None:
    checkpoints, first, second, watched = map(small, blocks("python"))
    exec(compile(checkpoints, "README, checkpoints", "exec"), {})
    exec(compile(first, "README, example 1", "exec"), {})
    commands, history = [small(block) for block in blocks("sh") if block.startswith(("rlforget diff", "rlforget init"))]
    held = Path("checkpoints/writing/model.safetensors").read_bytes()
    shell(commands)
    assert Path("checkpoints/writing/model.safetensors").read_bytes() == held
    assert changed("checkpoints/writing", "checkpoints/repaired") > 0
    assert "* " in shell(history)
    assert changed("checkpoints/writing", "checkpoints/writing-again") == 0
    exec(compile(second, "README, example 5", "exec"), {})
    exec(compile(watched, "README, example 6", "exec"), {})


def changed(before: str, after: str) -> float:
    """Return the share of coordinates that differ."""
    total = run("diff", before, after, "--json").json["total"]
    return float(total["changed"] / total["numel"])


def test_sequence_example() -> None:
    (text,) = blocks("yaml")
    assert "steps: 60" in text
    short = re.sub(r"steps: \d+", "steps: 2", text).replace("count: 256", "count: 16")
    Path("sequence.yaml").write_text(short)
    command = [Path(sys.executable).with_name("rlforget"), "sequence", "sequence.yaml", "-o", "runs/mine"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(Path("runs/mine").rglob("*.safetensors"))) == 2


def test_domain_example() -> None:
    from rlforget import domains

    (text,) = blocks("jsonl")
    Path("capitals.jsonl").write_text(text)
    domain = domains.get("capitals.jsonl")
    example = domain.examples(1)[0]
    assert domain.checked_reward(example, " Paris") == 1.0
    assert domain.checked_reward(example, " Rome") == 0.0
    assert domain.examples(1, split="eval")[0].answer == " Madrid"


def test_every_room_and_link_exists() -> None:
    tree = README.split("## The rooms")[1]
    for room in re.findall(r"^([\w./]+)/ ", tree, flags=re.M):
        assert (ROOT / room).is_dir(), room
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / link).exists(), link


def test_make_targets_it_names_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", README, flags=re.M))
    assert {"demo", "test", "miniature"} <= named
    for target in named:
        assert re.search(rf"^{target}:", makefile, flags=re.M), target
