"""Finding what changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from math import prod

import torch

from rlforget.delta.delta import Delta
from rlforget.delta.scan import Comparison, WholePair
from rlforget.delta.sharded import not_kept, sharding_of_pairs, whole_fingerprints
from rlforget.delta.tensor_delta import Fingerprint, TensorDelta
from rlforget.delta.whole import FileDelta, WholeDelta, file_content
from rlforget.weights import Weights, WeightsLike, open_weights
from rlforget.weights.batching import batches
from rlforget.weights.box import Box
from rlforget.weights.digest import block_lanes
from rlforget.weights.ranks import agreed
from rlforget.weights.sharding import Sharding
from rlforget_kernels.common.bits import bits_dtype, index_dtype
from rlforget_kernels.fingerprint import fingerprint
from rlforget_kernels.sparse_delta import foreach_sparse_delta

_BATCH_BYTES = 64 << 20  # of one side: many small tensors share a launch, and a large cache still holds what it read


def diff(
    before: WeightsLike,
    after: WeightsLike,
    *,
    rename: Mapping[str, str] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Delta:
    """Find every coordinate whose stored bits differ, and all else that does.

    A batch of tensor pairs is read at a time; where one of the two is on an accelerator, the other one follows it
    there. Between two checkpoint folders the files that are no weights (config, tokenizer) are compared too.

    A module or mapping may be spread over the ranks of torch.distributed (`fully_shard`, tensor parallel, FSDP1's
    sharded state dicts), the other side being one like it, or whole: a checkpoint, for one. Every rank calls this then,
    reads what it holds, and gets the part of the delta that lies there; see `Delta`.

    Args:
        before: A checkpoint folder or `.safetensors` file, a module, or `{name: tensor}`.
        after: Likewise.
        rename: {name before: name after}, for tensors that are not called the same.
        metadata: Strings to keep with the delta.

    Returns:
        A lossless delta, held on the CPU: 8 bytes a changed coordinate in bfloat16. Tensors on one side alone, resized
        or retyped are in its `.whole`. To compare checkpoints in bounded memory, see `rlforget.delta.write_diff`.

    Raises:
        LayoutError: The two have no tensor in common; or they are spread over ranks, and differently, or not all
            tensors keep names, shapes and dtypes.
        UnknownNameError: `rename` has a name that is not there.
        NotACheckpointError: A path that holds no readable checkpoint.
    """
    found = Comparison(open_weights(before, shards=True), open_weights(after, shards=True), rename)
    sharding = sharding_of_pairs(found.pairs, found.before, found.after)
    pairs = _loaded(found, sharding)
    loaded = batches(pairs, lambda sides: sides.before.nbytes, _BATCH_BYTES, lambda sides: sides.before.device)
    tensors: Iterable[TensorDelta] = (tensor for batch in loaded for tensor in _compare(batch))
    if sharding is not None:
        if others := [*(pair.name for pair in found.whole), *found.renamed]:
            raise not_kept(found.after, others)
        tensors = whole_fingerprints(agreed(partial(list, tensors)), sharding)
    return Delta(
        tensors,
        whole=(_whole(pair, found.before, found.after) for pair in found.whole),
        files=changed_files(found.before, found.after),
        renamed=found.renamed,
        aliases=found.aliases,
        metadata=metadata,
        sharding=sharding,
    )


def changed_files(before: Weights, after: Weights) -> list[FileDelta]:
    """Return what changed among the files that are no weights; nothing where one side is not a checkpoint folder."""
    old, new = before.files(), after.files()
    if old is None or new is None:
        return []
    changed = []
    for name in sorted(old.keys() | new.keys()):
        was, now = (file_content(files.get(name)) for files in (old, new))
        if was != now:
            changed.append(FileDelta(name, was, now))
    return changed


def _whole(pair: WholePair, old: Weights, new: Weights) -> WholeDelta:
    before = None if pair.before is None else _copy(old, pair.before)
    after = None if pair.after is None else _copy(new, pair.after)
    lanes = [None if t is None else _lanes(fingerprint(t).tolist()) for t in (before, after)]
    return WholeDelta(pair.name, before, after, *lanes)


def _copy(weights: Weights, name: str) -> torch.Tensor:
    """Return a tensor in memory of its own: live weights and files change, and a delta must not."""
    meta = weights.meta(name)
    bits = torch.empty(meta.numel, dtype=bits_dtype(meta.dtype))
    return weights.bits(name, out=bits).view(meta.dtype).view(meta.shape)


@dataclass(frozen=True)
class _Sides:
    """A tensor, or the block of it that is here, before and after, on one device."""

    name: str
    box: Box
    before: torch.Tensor
    after: torch.Tensor


def _loaded(found: Comparison, sharding: Sharding | None) -> Iterator[_Sides]:
    for name, name_before, name_after in found.pairs:
        shape = found.before.meta(name_before).shape
        box = Box.whole(shape) if sharding is None else sharding.boxes[name]
        before, after = found.before.block(name_before, box), found.after.block(name_after, box)
        device = after.device if before.device.type == "cpu" else before.device
        yield _Sides(name, box, before.to(device), after.to(device))


def _compare(batch: list[_Sides]) -> Iterator[TensorDelta]:
    before, after = [side.before for side in batch], [side.after for side in batch]
    found = zip(*foreach_sparse_delta(before, after), strict=True)
    boxes = [side.box for side in batch]
    fingerprints = block_lanes([*before, *after], [*boxes, *boxes])
    for number, (side, (indices, before_bits, after_bits)) in enumerate(zip(batch, found, strict=True)):
        box = side.box
        yield TensorDelta(
            name=side.name,
            dtype=side.before.dtype,
            shape=box.shape,
            indices=(indices if box.is_whole else box.to_whole(indices).to(index_dtype(prod(box.shape)))).cpu(),
            before_bits=before_bits.cpu(),
            after_bits=after_bits.cpu(),
            fingerprint_before=_lanes(fingerprints[number]),
            fingerprint_after=_lanes(fingerprints[len(batch) + number]),
            ordered=True,
        )


def _lanes(pair: list[int]) -> Fingerprint:
    first, second = pair
    return first, second
