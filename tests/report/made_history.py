"""A history of three stages on two branches, made in a moment."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from rlforget.history import History
from tests.report.test_page import HOSTILE

NAMES = ("model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight")


def made_history(folder: Path) -> Path:
    """A base; math, which changes half of layer 0; writing, which takes some of that back; and a branch from math.

    The message of math and one of its metrics are markup.
    """
    weights = {name: torch.zeros(4, 4) for name in NAMES}
    save_file(weights, folder / "base.safetensors")
    history = History.init(folder / "history", folder / "base.safetensors")
    weights[NAMES[1]][:2] = 1.0
    history.commit(weights, domain="math", message=HOSTILE, metrics={"math": 0.9, "by": {HOSTILE: 1}, "text": "x"})
    side = {name: tensor.clone() for name, tensor in weights.items()}
    side[NAMES[0]][0, 0] = 5.0
    history.commit(side, name="side", message="a branch")
    weights[NAMES[1]][0] = 0.0
    weights[NAMES[2]][:] = 2.0
    history.commit(weights, domain="writing", parent="math", message="on", metrics={"math": 0.4})
    history.tag("best", "math")
    return folder / "history"
