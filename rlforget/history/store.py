"""The weights of a history's stages: the base, and a delta file for each stage on the way, composed while read."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from rlforget.delta.composed import ComposedWeights
from rlforget.delta.file import DeltaFile
from rlforget.delta.file.reader import KEPT_FRAMES
from rlforget.delta.layers import FileLayer, Layer
from rlforget.errors import HistoryError, LayoutError
from rlforget.history.beginning import base_weights
from rlforget.history.files import delta_path
from rlforget.history.index import Index
from rlforget.history.stage import Stage, lineage
from rlforget.weights import TensorMeta, Weights, pair_up
from rlforget.weights.digest import digest
from rlforget.weights.opening import Checkpoint

_FRAMES = 16
"""Decoded frames that all deltas keep together, as long as there is one for each: 8 MB each in bfloat16."""


class Store:
    """Opens what the stages of a history are made of; a delta file is opened once.

    Args:
        folder: The history's folder.
        moved_base: The base, where it is elsewhere than the index says.
    """

    def __init__(self, folder: Path, moved_base: str | PathLike[str] | None) -> None:
        self.folder = folder
        self._moved_base = moved_base
        self._layers: dict[str, FileLayer] = {}

    def base(self, index: Index) -> Checkpoint:
        """Open the base; see `base_weights`."""
        return base_weights(self.folder, index.base, self._moved_base)

    def layers(self, index: Index, stage: Stage | None) -> list[FileLayer]:
        """Return the deltas that lead from the base to a stage.

        Raises:
            HistoryError: A delta's file is missing or damaged.
            DeltaFileError: Likewise.
        """
        return [self._layer(one, len(index.stages)) for one in reversed(list(lineage(index.by_id, stage)))]

    def weights(self, index: Index, stage: Stage | None, *more: Layer) -> ComposedWeights:
        """Return the weights of a stage; with further changes, of what comes after it.

        Raises:
            HistoryError: The base or a delta is missing or damaged.
            DeltaFileError: A delta is damaged.
            LayoutError: The base has other tensors than when the history began.
        """
        return ComposedWeights(self.base(index), [*self.layers(index, stage), *more])

    def _layer(self, stage: Stage, stages: int) -> FileLayer:
        if stage.id not in self._layers:
            frames = max(1, min(KEPT_FRAMES, _FRAMES // stages))
            self._layers[stage.id] = FileLayer(DeltaFile(delta_path(self.folder, stage), kept_frames=frames))
        return self._layers[stage.id]


def fingerprint_of(index: Index, stage: Stage | None) -> str:
    """Return the digest that the index has of a stage's weights."""
    return index.base.fingerprint if stage is None else stage.after


def digest_before(layer: Layer, weights: Weights) -> str:
    """Return the digest that `weights` have to have for a delta to begin with them.

    Raises:
        LayoutError: The delta is for other tensors.
    """
    lanes = {pair.after: layer.lanes(pair.before)[0] for pair in pair_up(layer.before, weights)}
    return digest({name: (weights.meta(name), lanes[name] or (0, 0)) for name in weights.names()})


def begins_with(store: Store, index: Index, stage: Stage | None, layer: Layer) -> bool:
    """Whether a delta begins with a stage's weights, however they are tied.

    Raises:
        HistoryError: The base or a delta is missing or damaged.
        DeltaFileError: A delta is damaged.
    """
    try:
        return digest_before(layer, store.weights(index, stage)) == fingerprint_of(index, stage)
    except LayoutError:
        return False


def digest_after(weights: ComposedWeights) -> str:
    """Return the digest that the last of the deltas says the composed weights have; nothing is read."""
    lanes = weights.check(all_tensors=True).lanes
    metas: dict[str, TensorMeta] = {name: weights.meta(name) for name in weights.names()}
    return digest({name: (meta, lanes[name]) for name, meta in metas.items()})


def check_promised(stage: Stage, weights: ComposedWeights) -> None:
    """Check that a stage's deltas lead, by what they say, to the weights that the index says.

    Raises:
        HistoryError: They do not.
    """
    found = digest_after(weights)
    if found != stage.after:
        raise HistoryError(
            f"stage {stage.name!r}",
            expected=f"weights {stage.after}",
            found=f"deltas that lead to {found}",
            fix="Take the deltas from a copy of the history.",
        )
