"""Finding what changed."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from rlforget.delta.sparse import Delta, Fingerprint, TensorDelta
from rlforget.weights import Weights, WeightsLike, merged_aliases, open_weights, pair_up
from rlforget_kernels.fingerprint import fingerprint
from rlforget_kernels.sparse_delta import sparse_delta


def diff(before: WeightsLike, after: WeightsLike, *, metadata: Mapping[str, str] | None = None) -> Delta:
    """Find every coordinate whose stored bits differ.

    One pair of tensors is read at a time; where one of the two is on an accelerator, the other one follows it there.

    Args:
        before: A checkpoint folder or `.safetensors` file, a module, or `{name: tensor}`.
        after: Likewise, with the same tensors.
        metadata: Strings to keep with the delta.

    Returns:
        A lossless delta, held on the CPU: 8 bytes a changed coordinate in bfloat16.

    Raises:
        LayoutError: Tensors are missing, extra, resized or retyped.
        NotACheckpointError: A path that holds no readable checkpoint.
    """
    old, new = open_weights(before), open_weights(after)
    pairs = pair_up(old, new)
    tensors = (_compare(name, old, name_before, new, name_after) for name, name_before, name_after in pairs)
    return Delta(tensors, aliases=merged_aliases(pairs, old, new), metadata=metadata)


def _compare(name: str, old: Weights, name_before: str, new: Weights, name_after: str) -> TensorDelta:
    before, after = old.tensor(name_before), new.tensor(name_after)
    device = after.device if before.device.type == "cpu" else before.device
    before, after = before.to(device), after.to(device)
    indices, before_bits, after_bits = sparse_delta(before, after)
    return TensorDelta(
        name=name,
        dtype=before.dtype,
        shape=tuple(before.shape),
        indices=indices.cpu(),
        before_bits=before_bits.cpu(),
        after_bits=after_bits.cpu(),
        fingerprint_before=_lanes(fingerprint(before)),
        fingerprint_after=_lanes(fingerprint(after)),
    )


def _lanes(result: torch.Tensor) -> Fingerprint:
    first, second = result.tolist()
    return int(first), int(second)
