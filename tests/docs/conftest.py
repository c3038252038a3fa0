"""A folder with the small checkpoints and the run that the pages speak of."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import rlforget as rf
from rlforget.domains import miniature
from rlforget.experiments.settings import SEQUENCE
from tests.report.made_results import made_results

OTHER_NAMES = {"checkpoints/sft": "code", "checkpoints/grpo": "math"}
OTHER_NAMES |= {"base": "base", "code": "code", "math": "math", "fixed": "qa"}
"""Further names that pages use, and the checkpoints that stand for them."""


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`checkpoints/NAME` for the base and each skill; in `runs/demo` the deltas that lead from one to the next."""
    folder = tmp_path_factory.mktemp("docs")
    model, tokenizer = miniature.load()
    draw = torch.Generator().manual_seed(0)
    seed = folder / "runs" / "demo" / "seed-0"
    stages = ("base", *SEQUENCE)
    for number, name in enumerate(stages):
        model.save_pretrained(folder / "checkpoints" / name)
        tokenizer.save_pretrained(folder / "checkpoints" / name)
        if number:
            file = seed / "stages" / f"{number:02d}-{name}" / f"{name}.delta.safetensors"
            file.parent.mkdir(parents=True)
            both = (folder / "checkpoints" / stages[number - 1], folder / "checkpoints" / name)
            rf.write_diff(*both, file, self_contained=True)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.01 * torch.randn(parameter.shape, generator=draw)
    for name, stage in OTHER_NAMES.items():
        shutil.copytree(folder / "checkpoints" / stage, folder / name)
    (folder / "math.yaml").write_text("steps: 60")
    (folder / "runs" / "demo" / "results.json").write_text(json.dumps(made_results(seeds=1)))
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of them, which is the current folder."""
    here = tmp_path / "page"
    shutil.copytree(made, here)
    monkeypatch.chdir(here)
    return here
