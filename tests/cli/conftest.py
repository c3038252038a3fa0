"""Small checkpoints, and a way to run a command in this process."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from rlforget.cli.app import app


@dataclass(frozen=True)
class Outcome:
    """What a command left: its exit code, stdout and stderr."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def fault(self) -> str:
        """The one line on stderr that says what is wrong with the input."""
        assert (self.code, self.out) == (1, ""), self
        *progress, last = self.err.splitlines()
        assert last.startswith("rlforget: ")
        assert not any(line.startswith(("rlforget: ", "Traceback")) for line in progress)
        return last


def run(*arguments: object) -> Outcome:
    """Run `rlforget ARGUMENTS`; an exception that is no exit is a bug, and is raised."""
    result = CliRunner().invoke(app, list(map(str, arguments)), prog_name="rlforget")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Outcome(result.exit_code, result.stdout, result.stderr)


@dataclass(frozen=True)
class Checkpoints:
    """Two checkpoint folders of one architecture, and the delta from the first to the second."""

    base: Path
    tuned: Path
    delta: Path


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    """A Qwen2 of 8 thousand random weights; about a fifth of them differ after."""
    root = tmp_path_factory.mktemp("checkpoints")
    base, tuned, delta = root / "base", root / "tuned", root / "tuned.delta.safetensors"
    write_model(base, hidden=16)
    shutil.copytree(base, tuned)
    generator = torch.Generator().manual_seed(1)

    def nudged(weight: torch.Tensor) -> torch.Tensor:
        moved = torch.rand(weight.shape, generator=generator) < 0.2
        return weight + 0.05 * moved * torch.randn(weight.shape, generator=generator)

    weights = {name: nudged(weight) for name, weight in load_file(base / "model.safetensors").items()}
    save_file(weights, tuned / "model.safetensors", metadata={"format": "pt"})
    assert run("diff", base, tuned, "-o", delta).code == 0
    return Checkpoints(base, tuned, delta)


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder of another architecture."""
    folder = tmp_path_factory.mktemp("other") / "model"
    write_model(folder, hidden=8)
    return folder


def write_model(folder: Path, *, hidden: int) -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from rlforget.domains.miniature.tokenizer import build_tokenizer
    from rlforget.training.quiet import quiet

    tokenizer = build_tokenizer()
    config = Qwen2Config(
        vocab_size=64,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(0)
        Qwen2ForCausalLM(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def differing(one: Path, other: Path) -> int:
    """How many coordinates of two checkpoint folders differ, by their bits."""
    first, second = tensors(one), tensors(other)
    assert first.keys() == second.keys()
    return sum(int((first[n].view(torch.int32) != second[n].view(torch.int32)).sum()) for n in first)


@contextmanager
def unchanged(folder: Path) -> Iterator[None]:
    """Hold that nothing appears, goes or changes under `folder` inside the block."""
    before = _listing(folder)
    yield
    assert _listing(folder) == before


def _listing(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}
