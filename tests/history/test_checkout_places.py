"""Where a stage is never written, whatever is forced: over what the history needs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rlforget.errors import OutputError
from rlforget.history import History
from tests.delta.random_weights import write_checkpoint

STATE = {"a": torch.arange(20.0), "b": torch.arange(6).view(2, 3)}
TUNED = {"a": STATE["a"] + 1, "b": STATE["b"]}


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("copy", [False, True])
def test_a_checkout_replaces_neither_the_history_nor_its_base(tmp_path: Path, copy: bool) -> None:
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    history = History.init(tmp_path / "h", write_checkpoint(inputs / "base", STATE, 2), copy=copy)
    history.commit(TUNED, name="math")
    (tmp_path / "name").symlink_to(tmp_path / "h")
    before = files(tmp_path)
    inside = [tmp_path / "h" / "deltas", tmp_path / "h" / "base", tmp_path / "h" / "out", tmp_path / "name" / "out"]
    base = [] if copy else [inputs / "base", inputs / "base" / "out", inputs]
    for out in (tmp_path / "h", tmp_path, *inside, *base):
        for stage in ("math", "base"):
            for dry_run in (True, False):
                with pytest.raises(OutputError):
                    history.checkout(stage, out, force=True, dry_run=dry_run)
    assert files(tmp_path) == before
    assert history.verify().sound
    history.checkout("math", inputs / "out")
    history.checkout("base", inputs / "out", force=True)


def test_a_checkout_does_not_replace_a_base_of_one_file(tmp_path: Path) -> None:
    (base,) = write_checkpoint(tmp_path / "base", STATE, 0).glob("*.safetensors")
    (tmp_path / "link.safetensors").symlink_to(base)
    history = History.init(tmp_path / "h", tmp_path / "link.safetensors")
    history.commit(TUNED, name="math")
    for out in (base, tmp_path / "link.safetensors"):
        with pytest.raises(OutputError, match="apart"):
            history.checkout("math", out, force=True)
    history.checkout("math", base.with_name("out.safetensors"))
    assert history.verify().sound
