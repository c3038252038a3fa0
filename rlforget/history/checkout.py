"""Writing a stage as a checkpoint, in one pass over the base and the deltas."""

from __future__ import annotations

from pathlib import Path

from rlforget.errors import HistoryError
from rlforget.history.index import Index
from rlforget.history.stage import Stage
from rlforget.history.store import Store, check_promised
from rlforget.weights import save_checkpoint
from rlforget.weights.ahead import Progress
from rlforget.weights.atomic import check_free, check_new_folder
from rlforget.weights.digest import weights_digest
from rlforget.weights.replacing import check_apart


def checkout(
    store: Store,
    index: Index,
    stage: Stage | None,
    out: Path,
    *,
    force: bool,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> None:
    """Write a stage, or check all that this would; see `History.checkout`."""
    base = store.base(index)
    check_apart(out, [store.folder, base.path, *base.shards])
    (check_new_folder if base.path.is_dir() else check_free)(out, force=force)
    if stage is None:
        if weights_digest(base) != index.base.fingerprint:
            raise HistoryError(
                base.description,
                expected=f"the base, weights {index.base.fingerprint}",
                found="others",
                fix="Put the base back, or run init on this history with the place where it is now.",
            )
        if not dry_run:
            save_checkpoint(out, base, like=base.path, force=force)
        return
    weights = store.weights(index, stage)
    check_promised(stage, weights)
    if dry_run:
        weights.verify(all_tensors=True)
    else:
        weights.save(out, all_tensors=True, force=force, progress=progress)
