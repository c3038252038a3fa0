"""What an output may replace: a checkpoint, and of what lies beside its weights nothing that someone may miss."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from pathlib import Path

from rlforget.errors import NotACheckpointError, OutputError
from rlforget.weights.checkpoint_files import INDEX_FILE, is_companion, shard_paths
from rlforget.weights.distributed_metadata import METADATA_FILE, is_distributed, item_files, read_contents
from rlforget.weights.drafts import is_draft

_SHOWN = 5  # files that an error names
_GIT_ATTRIBUTES = ".gitattributes"  # every downloaded checkpoint has it; it says nothing of the weights


def check_replaceable(path: Path, brings: Collection[str] | None) -> None:
    """Check that nothing is lost when a new folder takes the place of the one at `path`.

    A checkpoint's own files may go: its shards, their index, and its other top-level files (config, tokenizer, README).
    Files in sub-folders, weights in other files or formats, optimizer states, deltas, and records for `undo` may not,
    unless the new folder has files of the same names.

    Args:
        path: The place; nothing, or an empty folder, may be there too.
        brings: The files of the new folder, as paths relative to it; None: not known yet, so only what is no checkpoint
            is refused.

    Raises:
        OutputError: Something would be lost, or there is no checkpoint.
    """
    if not os.path.lexists(path):
        return
    if not path.is_dir() or path.is_symlink():
        raise _refusal(path, "a folder", "a file or a link", "Choose another path.")
    if not any(path.iterdir()):
        return
    try:
        shards = _distributed(path) if is_distributed(path) else {shard.name for shard in shard_paths(path)}
    except NotACheckpointError as error:
        raise _refusal(path, "a checkpoint folder to replace", error.found, "Choose another path.") from error
    if brings is None:
        return
    lost = [name for name in files_in(path) if name not in brings and not (name in shards or _may_go(name))]
    if lost:
        named = ", ".join(lost[:_SHOWN]) + (f" and {len(lost) - _SHOWN} more" if len(lost) > _SHOWN else "")
        fix = "Move them elsewhere (`rlforget undo FOLDER --forget` drops undo records), or choose another path."
        raise _refusal(path, "a checkpoint and nothing else that replacing it would delete", named, fix)


def _distributed(path: Path) -> set[str]:
    """Return the files of a folder of torch.distributed.checkpoint, which hold nothing but a model."""
    left_out = read_contents(path).left_out
    if left_out:
        expected = "a folder that holds a model alone"
        raise _refusal(path, expected, f"more in the same files, e.g. {left_out[0]!r}", "Choose another path.")
    return {METADATA_FILE, *(file.name for file in item_files(path))}


def check_apart(path: Path, kept: Iterable[Path]) -> None:
    """Check that an output is none of the files and folders to be kept, lies in none of them and holds none of them.

    Raises:
        OutputError: It does.
    """
    place = Path(os.path.realpath(path))
    for one in kept:
        other = Path(os.path.realpath(one))
        if place == other or place in other.parents or other in place.parents:
            how = (
                "that itself" if place == other else "one that holds it" if place in other.parents else "one inside it"
            )
            raise _refusal(path, f"a place apart from {one}", how, "Choose another path.")


def files_in(folder: Path) -> list[str]:
    """Return the paths, relative to a folder, of all files, links and empty folders in it and below, sorted."""
    found: list[str] = []
    for path, folders, files in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(path, name))]
        empty = ["."] if path != str(folder) and not (folders or files) else []
        found += (os.path.relpath(os.path.join(path, name), folder) for name in (*files, *links, *empty))
    return sorted(found)


def _may_go(name: str) -> bool:
    """Whether a file of a checkpoint folder, by its relative path, goes when another checkpoint takes its place."""
    own = is_companion(name) or name in (INDEX_FILE, _GIT_ATTRIBUTES) or is_draft(name)
    return os.sep not in name and own


def _refusal(path: Path, expected: str, found: str, fix: str) -> OutputError:
    return OutputError(str(path), expected=expected, found=found, fix=fix)
