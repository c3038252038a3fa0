"""The live model of a run: its stages replayed, its weights copied and told apart."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from rlforget.delta import apply
from rlforget.errors import ConfigError
from rlforget.training.run_folder import RunFolder, StageFolder
from rlforget.weights import open_weights


def replay(model: Any, folder: Path) -> None:
    """Bring `model`, which is a run's base, to the weights after the run's last stage, in place.

    Raises:
        ConfigError: `folder` holds no run.
        WrongBaseError: `model` is another base.
    """
    stages = RunFolder(folder).finished()
    if not stages:
        fix = "Name the output folder of a sequence."
        raise ConfigError(f"continue_from {str(folder)!r}", expected="the folder of a run", found="none", fix=fix)
    if (earlier := stages[0].record.get("continue_from")) is not None:
        replay(model, Path(earlier))
    for stage in _line({stage.name: stage for stage in stages}, stages[-1]):
        apply(model, stage.delta())


def _line(stages: Mapping[str, StageFolder], last: StageFolder) -> list[StageFolder]:
    """Return a stage and those it comes from, the first one first, without the base."""
    parent = last.record.get("parent")
    return [] if parent is None else [*_line(stages, stages[parent]), last]


def weights_digest(model: Any) -> str:
    """Return a digest of all names, dtypes, shapes and bits of a model's weights."""
    from rlforget_kernels.fingerprint import fingerprint

    weights, digest = open_weights(model), hashlib.sha256()
    for name in weights.names():
        meta = weights.meta(name)
        lanes = fingerprint(weights.tensor(name)).tolist()
        digest.update(f"{name} {meta.dtype} {tuple(meta.shape)} {lanes}\n".encode())
    return digest.hexdigest()[:32]


def tensors(model: Any, *, copy: bool) -> Mapping[str, Tensor]:
    """Return a model's tensors in main memory by every name they go by."""
    weights = open_weights(model)
    found = {name: weights.tensor(name).detach().to("cpu", copy=copy) for name in weights.names()}
    return found | {alias: found[name] for alias, name in weights.aliases.items()}
