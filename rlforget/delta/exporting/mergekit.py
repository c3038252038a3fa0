"""A delta for mergekit: the weights after as a checkpoint, and the configuration that takes them as a task vector.

mergekit (https://github.com/arcee-ai/mergekit) reads no differences. Its `task_arithmetic` and its kin take whole
models and subtract the base themselves.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from rlforget.delta.composed import ComposedWeights
from rlforget.delta.exporting.changes import Changes
from rlforget.delta.patching import DeltaLike
from rlforget.errors import ExportError
from rlforget.weights import Weights, WeightsLike
from rlforget.weights.ahead import Progress
from rlforget.weights.atomic import check_new_folder
from rlforget.weights.checkpoint import CheckpointWeights

RECIPE = "mergekit.yml"


@dataclass(frozen=True)
class MergekitModel:
    """What was written for mergekit.

    Attributes:
        base: The checkpoint before.
        recipe: The configuration's path.
        changed: How many coordinates the model differs in from the base.
    """

    base: str
    recipe: str
    changed: int

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain values."""
        return asdict(self)

    def table(self) -> str:
        """Return it as text for people."""
        return f"{self.changed:,} coordinates changed; merge with: mergekit-yaml {self.recipe} OUT"


class _Model(ComposedWeights):
    """The weights after, with a configuration for mergekit among their files."""

    recipe: bytes

    def files(self) -> Mapping[str, Path | bytes]:
        """Return the files beside the weights."""
        return {**(super().files() or {}), RECIPE: self.recipe}


def export_mergekit(
    delta: DeltaLike,
    path: str | PathLike[str],
    *,
    base: WeightsLike,
    dry_run: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> MergekitModel:
    """Write the checkpoint after, bit for bit, and in it `mergekit.yml`, which adds the change to the base.

    Args:
        delta: A delta, its file, or the file's path.
        path: The folder to create.
        base: The checkpoint folder before.
        dry_run: Check that the delta fits, and write nothing.
        force: Replace a checkpoint folder that is at `path`.
        progress: Told how many coordinates are written, and of how many.

    Raises:
        ExportError: `base` is no checkpoint folder, or the one after; or a tensor does not keep its shape and dtype.
        DeltaFileError, WrongBaseError, LayoutError, NotACheckpointError: As for `rlforget.apply`.
        OutputError: `path` exists and may not be replaced, or cannot be written.
    """
    path, changes = Path(path), Changes(delta, base)
    changes.require_only_bits("task arithmetic")
    place = changes.base_path
    if not isinstance(changes.base, CheckpointWeights) or place is None or not place.is_dir():
        raise ExportError(
            "the base",
            expected="the checkpoint folder before the change, which mergekit subtracts",
            found="the weights after it" if changes.forward is False else "no folder",
            fix="Give --base (base=) the folder that the delta was made from.",
        )
    model = _Model(changes.base, [changes.layer()])
    model.recipe = _recipe(place.resolve(), path.resolve(), changes.base).encode()
    if dry_run:
        check_new_folder(path, force=force)
        model.verify()
    else:
        model.save(path, force=force, progress=progress)
    return MergekitModel(str(place), str(path / RECIPE), sum(changes.changed.values()))


def _recipe(base: Path, model: Path, weights: Weights) -> str:
    """Return the configuration; JSON is YAML, so quoting is JSON's."""
    dtypes = Counter[str]()
    for name in weights.names():
        meta = weights.meta(name)
        if meta.dtype.is_floating_point:
            dtypes[str(meta.dtype).removeprefix("torch.")] += meta.numel
    kept = dtypes.most_common(1)[0][0]
    return f"""# weight 1.0 gives the model after; lower it, negate it, or list further models and their weights.
merge_method: task_arithmetic
base_model: {_reference(base)}
models:
  - model: {_reference(model)}
    parameters: {{weight: 1.0}}
dtype: {"float64" if kept == "float64" else "float32"}  # of differences and sums
out_dtype: {kept}
"""


def _reference(path: Path) -> str:
    """Write a path as mergekit reads one: in a string, + would begin an adapter's and @ a revision."""
    text = str(path)
    return json.dumps({"model": {"path": text}} if {"+", "@"} & set(text) else text, ensure_ascii=False)
