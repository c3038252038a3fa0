"""Every example runs, on small real checkpoints: by a line in `RUNS`, or by another test that names it."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import rlforget as rf
from rlforget.training.quiet import quiet
from tests.checkpoint_pair import write_pair

EXAMPLES = Path(__file__).parents[1] / "examples"


@dataclass(frozen=True)
class Run:
    """How an example is run.

    Attributes:
        arguments: What follows its name.
        says: What it prints, among other things.
        makes: The files and folders that are there afterwards.
    """

    arguments: str
    says: tuple[str, ...] = ()
    makes: tuple[str, ...] = ()


PAIR = "checkpoints/math checkpoints/writing"
TENSOR = "model.layers.0.mlp.up_proj.weight"
RUNS = {
    "commit_from_a_loop": Run("checkpoints/math loop 2", ("committed step-1", "step-2, loss"), ("loop/history.json",)),
    "compare_circuits": Run(f"{PAIR} checkpoints/second --pairs 8", ("the base needs", "retention")),
    "export_lora": Run(f"{PAIR} adapter 0.2", ("rank   8", "next tokens"), ("adapter/adapter_config.json",)),
    "guarded_evaluation": Run(f"{PAIR} math 8", ("as it is", "layer 3 rolled back")),
    "last_changed_by": Run(f"history {TENSOR}", ("100.0%  writing", "layer 3    1.00")),
    "overlap_and_merge": Run(
        "checkpoints/math checkpoints/first checkpoints/second merged", ("Jaccard", "merged: "), ("merged/config.json",)
    ),
    "own_domain": Run(
        "checkpoints/writing sums.jsonl refreshed 1", ("before: ", "after: "), ("refreshed/config.json",)
    ),
    "predict_damage": Run(f"{PAIR} math", ("math     loses",)),
    "restore_with_32_prompts": Run(f"{PAIR} restored 8", ("restored: math",), ("restored/model.safetensors",)),
    "sweep": Run(f"{PAIR} --restore math --protect writing --samples 8 --prompts 8", ("2.0% of all",)),
    "what_changed": Run(PAIR, ("layer 3", "moved furthest")),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with checkpoints `math`, `writing`, and two that differ from `math` by 5% each; and a history."""
    folder = tmp_path_factory.mktemp("examples")
    write_pair(folder)
    checkpoints = folder / "checkpoints"
    before, after = (rf.open_weights(checkpoints / name) for name in ("math", "writing"))
    for seed, name in enumerate(("first", "second")):
        generator = torch.Generator().manual_seed(seed)
        mixed = {}
        for tensor in before.names():
            moved = torch.rand(before.meta(tensor).shape, generator=generator) < 0.05
            mixed[tensor] = torch.where(moved, after.tensor(tensor), before.tensor(tensor))
        rf.save_checkpoint(checkpoints / name, mixed, like=checkpoints / "math")
    history = rf.History.init(folder / "history", checkpoints / "math")
    history.commit(checkpoints / "writing", domain="writing")
    return folder


@pytest.mark.parametrize("name", RUNS)
def test_an_example_does_what_it_is_for(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RUNS[name]
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *run.arguments.split()])
    with quiet():
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    shown = capsys.readouterr().out
    for text in run.says:
        assert text in shown, shown
    for made in run.makes:
        assert os.path.exists(made)


def test_merging_takes_both_changes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the example writes is the first one's bits where that changed, and the second one's elsewhere."""
    monkeypatch.chdir(folder)
    shutil.rmtree("merged", ignore_errors=True)
    runpy.run_path(str(EXAMPLES / "overlap_and_merge.py"))["main"](
        "checkpoints/math", "checkpoints/first", "checkpoints/second", "merged"
    )
    base, first, second, merged = (
        rf.open_weights(path).tensor(TENSOR)
        for path in ("checkpoints/math", "checkpoints/first", "checkpoints/second", "merged")
    )
    assert torch.equal(merged, torch.where(first != base, first, second))


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_every_example_is_run_and_fits_a_screen(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert f"python examples/{path.name}" in "\n".join(lines[:5]), "its docstring shows no command"
    assert len(lines) <= 60 or path.stem == "read_delta"  # a whole reader of the format
    others = [other for other in Path(__file__).parent.rglob("test_*.py") if other != Path(__file__)]
    named = re.compile(rf"""["'/]{path.stem}(\.py)?["']""")
    assert path.stem in RUNS or any(named.search(other.read_text(encoding="utf-8")) for other in others)
