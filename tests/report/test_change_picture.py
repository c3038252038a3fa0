"""The picture of a change."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import matplotlib.image
import numpy as np
import pytest
import torch

from rlforget.delta import diff
from rlforget.errors import OutputError
from rlforget.report.change_picture import save_change_picture

NAMES = ("model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.up_proj.weight")


def texts(path: Path) -> str:
    return "".join(ElementTree.parse(path).getroot().itertext())


def test_it_says_where_and_how_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("matplotlib").rcParams, "svg.fonttype", "none")
    before = {name: torch.ones(8, 4) for name in NAMES}
    after = {**before, NAMES[1]: before[NAMES[1]].clone()}
    after[NAMES[1]][0] = torch.nextafter(torch.tensor(1.0), torch.tensor(2.0))
    save_change_picture(diff(before, after).stats(), tmp_path / "one.svg", name="$a_1$, b")
    text = texts(tmp_path / "one.svg")
    assert "4.17% of 96 coordinates changed" in text
    assert "$a_1$, b: " in text.replace("\\$", "$")
    for wanted in ("q_proj", "up_proj", "embed_tokens", "elsewhere", "layer", "share of coordinates changed"):
        assert wanted in text
    assert "steps between values of float32" in text


@pytest.mark.parametrize("tensors", [{}, {"w": torch.zeros(0)}, {"w": torch.ones(3)}], ids=["none", "empty", "equal"])
def test_a_change_of_nothing_is_drawn(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    save_change_picture(diff(tensors, tensors).stats(), tmp_path / "none.png")
    pixels = matplotlib.image.imread(tmp_path / "none.png")
    edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    assert (edge == 1.0).all()


def test_nothing_is_overwritten_without_force(tmp_path: Path) -> None:
    stats = diff({"w": torch.zeros(2)}, {"w": torch.ones(2)}).stats()
    (tmp_path / "one.svg").write_text("precious")
    with pytest.raises(OutputError):
        save_change_picture(stats, tmp_path / "one.svg")
    with pytest.raises(OutputError):
        save_change_picture(stats, tmp_path / "one.pdf")
    assert (tmp_path / "one.svg").read_text() == "precious"
