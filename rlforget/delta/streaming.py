"""Comparing checkpoints of any size in bounded memory: for their statistics, or into a delta file."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from os import PathLike

from rlforget.delta.compare import changed_files
from rlforget.delta.file import FileEntry, Side, new_delta_file
from rlforget.delta.file.line import share
from rlforget.delta.scan import Comparison
from rlforget.delta.stats import DeltaStats
from rlforget.delta.tally import Tally
from rlforget.weights import Weights, WeightsLike, open_weights
from rlforget.weights.ahead import Progress


def measure_diff(
    before: WeightsLike,
    after: WeightsLike,
    *,
    rename: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> DeltaStats:
    """Measure what changed, range by range: `diff(before, after).stats()`, without the delta.

    Ranks may split the work, here and in `write_diff`; see `rlforget.weights.split`.

    Args:
        before: A checkpoint folder or `.safetensors` file, a module, or `{name: tensor}`.
        after: Likewise.
        rename: {name before: name after}, for tensors that are not called the same.
        progress: Told how many coordinates were read.

    Raises:
        LayoutError: The two have no tensor in common.
        UnknownNameError: `rename` has a name that is not there.
        NotACheckpointError: A path that holds no readable checkpoint.
    """
    found = Comparison(open_weights(before), open_weights(after), rename)
    tally = Tally(found, changed_files(found.before, found.after))
    for piece in found.pieces(progress, within=share(found.layout, {}, {}, self_contained=False)):
        tally.add(piece)
    return tally.stats()


def write_diff(
    before: WeightsLike,
    after: WeightsLike,
    path: str | PathLike[str],
    *,
    rename: Mapping[str, str] | None = None,
    metadata: Mapping[str, str] | None = None,
    self_contained: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> DeltaStats:
    """Write what changed into a delta file, range by range: `diff(before, after).save(path)`, without the delta.

    Args:
        before: A checkpoint folder or `.safetensors` file, a module, or `{name: tensor}`.
        after: Likewise.
        path: The file, by custom `NAME.delta.safetensors`; it appears whole or not at all.
        rename: {name before: name after}, for tensors that are not called the same.
        metadata: Strings to keep with the delta.
        self_contained: Let the bits from before travel too; see `Delta.save`.
        force: Replace a file that is there.
        progress: Told how many coordinates were read.

    Returns:
        The statistics of the change.

    Raises:
        LayoutError: The two have no tensor in common.
        UnknownNameError: `rename` has a name that is not there.
        NotACheckpointError: A path that holds no readable checkpoint.
        OutputError: The file exists, or cannot be written.
        DeltaFileError: A changed file beside the weights is too large to be carried.
    """
    found = Comparison(open_weights(before), open_weights(after), rename)
    files = changed_files(found.before, found.after)
    tally = Tally(found, files)
    entries = {file.name: FileEntry.of(file) for file in files}
    own = share(found.layout, found.whole_metas, entries, self_contained=self_contained)
    with new_delta_file(
        path,
        found.layout,
        renamed=found.renamed,
        metadata=metadata,
        files=files,
        self_contained=self_contained,
        force=force,
        share=own,
    ) as writer:
        for piece in found.pieces(progress, within=own):
            writer.add(piece)
            tally.add(piece)
        for pair in found.whole:
            writer.whole(pair.name, _side(found.before, pair.before), _side(found.after, pair.after))
    return tally.stats()


def _side(weights: Weights, name: str | None) -> Side | None:
    return None if name is None else Side(weights.meta(name), partial(weights.bits, name))
