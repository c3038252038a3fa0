"""The algebra of deltas: back, one after another, a part, several at once; all without any weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from rlforget.delta.delta import Delta
from rlforget.delta.sharded import check_whole, led_on
from rlforget.delta.tensor_delta import Fingerprint, TensorDelta
from rlforget.delta.whole import FileDelta, WholeDelta
from rlforget.errors import CoordinateError, LayoutError, UnknownNameError, WrongBaseError
from rlforget.weights.sharding import Sharding, together
from rlforget_kernels.common.bits import bits_dtype, index_dtype
from rlforget_kernels.fingerprint import fingerprint_after_patch
from rlforget_kernels.patch import patch_
from rlforget_kernels.sparse_delta import sparse_delta

Change = TensorDelta | WholeDelta


def invert(delta: Delta) -> Delta:
    """Return the delta that leads back; see `Delta.invert`."""
    after = delta.name_after
    return Delta(
        (replace(tensor.invert(), name=after(name)) for name, tensor in delta.items()),
        whole=(replace(tensor.invert(), name=after(name)) for name, tensor in delta.whole.items()),
        files=(file.invert() for file in delta.files.values()),
        renamed={new: old for old, new in delta.renamed.items()},
        aliases={alias: after(name) for alias, name in delta.aliases.items()},
        metadata=delta.metadata,
        sharding=delta.sharding and delta.sharding.renamed({after(name): name for name in delta}),
    )


def then(first: Delta, later: Delta) -> Delta:
    """Return one delta for two, one after the other; see `Delta.then`."""
    _check_alike([first, later])
    changes: list[Change] = []
    met = set()
    for change in _changes(first):
        at = first.name_after(change.name)
        follows = _change(later, at)
        if follows is not None:
            met.add(follows.name)
        elif _lanes_after(change) is not None:
            raise _other_tensors(at, "no such tensor in the later delta")
        changes += _joined(change, follows)
    for follows in _changes(later):
        if follows.name not in met:
            if _lanes_before(follows) is not None:
                raise _other_tensors(follows.name, "no such tensor in the earlier delta")
            changes.append(follows)
    renamed = {}
    for place, change in enumerate(changes):
        last = later.name_after(first.name_after(change.name))
        if last != change.name and _lanes_before(change) is None:
            changes[place] = replace(change, name=last)  # there is no name before that it could keep
        elif last != change.name:
            renamed[change.name] = last
    back = {new: old for old, new in first.renamed.items()}
    aliases = {alias: back.get(name, name) for alias, name in later.aliases.items()} | first.aliases
    metadata = first.metadata | later.metadata
    return _gathered(changes, _joined_files(first, later), renamed, aliases, metadata, first.sharding)


def restrict(delta: Delta, to: Mapping[str, Tensor] | Iterable[str]) -> Delta:
    """Return a part of a delta; see `Delta.restrict`."""
    kept: dict[str, Tensor | None] = {}
    for name, indices in (to if isinstance(to, Mapping) else dict.fromkeys(to)).items():
        canonical = delta.aliases.get(name, name)
        kept[canonical] = _united(kept[canonical], indices) if canonical in kept else indices
    for name in kept:
        if name not in delta and name not in delta.whole:
            delta[name]  # raises
    tensors = together(
        lambda: [_part(tensor, kept[name]) if name in kept else _none(tensor) for name, tensor in delta.items()],
        delta.sharding,
    )
    changes: list[Change] = [*tensors]
    for name, tensor in delta.whole.items():
        if name in kept:
            if kept[name] is not None:
                raise UnknownNameError(
                    f"coordinates of {name!r}",
                    expected="a tensor that kept its shape and dtype",
                    found="one that changed as a whole",
                    fix="Name the tensor alone, or leave it out.",
                )
            changes.append(tensor)
        elif tensor.before is not None and tensor.fingerprint_before is not None:
            changes.append(_unchanged(name, tensor.before, tensor.fingerprint_before))
    renamed = {old: new for old, new in delta.renamed.items() if old in kept}
    return _gathered(changes, [], renamed, delta.aliases, delta.metadata, delta.sharding)


def add(deltas: Iterable[Delta]) -> Delta:
    """Return several disjoint deltas of the same weights as one; see `Delta.sum`."""
    given = list(deltas)
    _check_alike(given)
    changes: dict[str, Change] = {}
    files: dict[str, FileDelta] = {}
    renamed: dict[str, str] = {}
    for delta in given:
        for change in _changes(delta):
            known = changes.get(change.name)
            changes[change.name] = change if known is None else _both(known, change)
        for file in delta.files.values():
            if files.setdefault(file.name, file) != file:
                raise _twice(f"file {file.name!r}")
        for old, new in delta.renamed.items():
            if renamed.setdefault(old, new) != new:
                raise _twice(f"the name of {old!r}")
    aliases = {alias: name for delta in given for alias, name in delta.aliases.items()}
    metadata = {key: value for delta in given for key, value in delta.metadata.items()}
    sharding = given[0].sharding if given else None
    return _gathered(changes.values(), files.values(), renamed, aliases, metadata, sharding)


def _check_alike(deltas: list[Delta]) -> None:
    if len({delta.sharding is None for delta in deltas}) > 1:
        check_whole(*deltas)


def _gathered(
    changes: Iterable[Change],
    files: Iterable[FileDelta],
    renamed: Mapping[str, str],
    aliases: Mapping[str, str],
    metadata: Mapping[str, str],
    sharding: Sharding | None,
) -> Delta:
    all_changes = list(changes)
    tensors = [change for change in all_changes if isinstance(change, TensorDelta)]
    return Delta(
        tensors if sharding is None else led_on(tensors, sharding),
        whole=(change for change in all_changes if isinstance(change, WholeDelta)),
        files=files,
        renamed=renamed,
        aliases=aliases,
        metadata=metadata,
        sharding=sharding,
    )


def _changes(delta: Delta) -> list[Change]:
    return [*delta.values(), *delta.whole.values()]


def _change(delta: Delta, name: str) -> Change | None:
    canonical = delta.aliases.get(name, name)
    return delta.whole.get(canonical) or delta.get(canonical)


def _lanes_before(change: Change) -> Fingerprint | None:
    return change.fingerprint_before


def _lanes_after(change: Change) -> Fingerprint | None:
    return change.fingerprint_after


def _joined(first: Change, later: Change | None) -> list[Change]:
    """Return one change for two of one tensor: none where it came and went."""
    if later is None:
        return [first]
    if _lanes_after(first) != _lanes_before(later):
        raise WrongBaseError(
            f"the later delta of {later.name!r}",
            expected="to begin with the bits that the earlier one ends with",
            found="other bits, by their fingerprints",
            fix="Join deltas in the order in which the changes were made.",
        )
    if isinstance(first, TensorDelta) and isinstance(later, TensorDelta):
        return [_joined_patches(first, later)]
    before = _patched(later.before, first.invert()) if isinstance(first, TensorDelta) else first.before
    after = _patched(first.after, later) if isinstance(later, TensorDelta) else later.after
    return _whole(first.name, before, after, _lanes_before(first), _lanes_after(later))


def _whole(
    name: str,
    before: Tensor | None,
    after: Tensor | None,
    lanes_before: Fingerprint | None,
    lanes_after: Fingerprint | None,
) -> list[Change]:
    if before is None and after is None:
        return []
    if before is None or after is None or (before.dtype, before.shape) != (after.dtype, after.shape):
        return [WholeDelta(name, before, after, lanes_before, lanes_after)]
    unchanged = _unchanged(name, before, lanes_before)
    indices, old, new = sparse_delta(before, after)
    return [_with_patch(unchanged, indices, old, new)]


def _joined_patches(first: TensorDelta, later: TensorDelta) -> TensorDelta:
    indices: Tensor = torch.cat([first.indices, later.indices]).unique()  # type: ignore[no-untyped-call]
    old = _filled(indices, (later.indices, later.before_bits), (first.indices, first.before_bits))
    new = _filled(indices, (first.indices, first.after_bits), (later.indices, later.after_bits))
    differ = old != new
    return _with_patch(first, indices[differ], old[differ], new[differ])


def _filled(indices: Tensor, *layers: tuple[Tensor, Tensor]) -> Tensor:
    """Return a value for each of `indices`: that of the last layer that has one."""
    values = layers[0][1].new_empty(indices.numel())
    for at, found in layers:
        values[torch.searchsorted(indices, at)] = found
    return values


def _patched(weight: Tensor | None, patch: TensorDelta) -> Tensor | None:
    """Return a copy of `weight` with `patch` applied; that it fits was told by its fingerprint."""
    if weight is None:
        return None
    weight = weight.clone()
    patch_(weight, patch.indices, patch.before_bits, patch.after_bits)
    return weight


def _with_patch(like: TensorDelta, indices: Tensor, old: Tensor, new: Tensor) -> TensorDelta:
    """Return a change of the tensor `like` is about, from the same bits, at other coordinates."""
    lanes = fingerprint_after_patch(torch.tensor(like.fingerprint_before), indices, old, new).tolist()
    return replace(like, indices=indices, before_bits=old, after_bits=new, fingerprint_after=(lanes[0], lanes[1]))


def _united(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    """Return the indices asked for by two names of a tensor; None is all of them."""
    return None if first is None or second is None else torch.cat([first.long(), second.long()])


def _part(tensor: TensorDelta, indices: Tensor | None) -> TensorDelta:
    if indices is None:
        return tensor
    at: Tensor = tensor.positions(indices.unique()).cpu()  # type: ignore[no-untyped-call]
    return _with_patch(tensor, tensor.indices[at], tensor.before_bits[at], tensor.after_bits[at])


def _none(tensor: TensorDelta) -> TensorDelta:
    return _with_patch(tensor, tensor.indices[:0], tensor.before_bits[:0], tensor.after_bits[:0])


def _unchanged(name: str, value: Tensor, lanes: Fingerprint | None) -> TensorDelta:
    assert lanes is not None  # a tensor that is there has one
    nowhere = torch.empty(0, dtype=index_dtype(value.numel()))
    bits = torch.empty(0, dtype=bits_dtype(value.dtype))
    return TensorDelta(name, value.dtype, tuple(value.shape), nowhere, bits, bits, lanes, lanes)


def _both(first: Change, second: Change) -> Change:
    """Return one change for two of one tensor, of which one at most touches any coordinate."""
    if _lanes_before(first) != _lanes_before(second):
        raise WrongBaseError(
            f"a sum of deltas, tensor {first.name!r}",
            expected="deltas that all begin at the same weights",
            found="two that begin with other bits, by their fingerprints",
            fix="Bring them to one base first, e.g. with .then().",
        )
    if isinstance(first, TensorDelta) and isinstance(second, TensorDelta):
        indices, order = torch.cat([first.indices, second.indices]).sort()
        if bool((indices[1:] == indices[:-1]).any()):
            raise _twice(f"a coordinate of {first.name!r}")
        old = torch.cat([first.before_bits, second.before_bits])[order]
        new = torch.cat([first.after_bits, second.after_bits])[order]
        return _with_patch(first, indices, old, new)
    for one, other in ((first, second), (second, first)):
        if isinstance(one, WholeDelta) and (isinstance(other, TensorDelta) and not other.changed):
            return one
    if first == second:
        return first
    raise _twice(f"tensor {first.name!r}")


def _joined_files(first: Delta, later: Delta) -> list[FileDelta]:
    joined = []
    for name in dict.fromkeys([*first.files, *later.files]):
        one, two = first.files.get(name), later.files.get(name)
        if one is not None and two is not None and one.after != two.before:
            raise WrongBaseError(
                f"the later delta of the file {name!r}",
                expected="to begin with the bytes that the earlier one ends with",
                found="others",
                fix="Join deltas in the order in which the changes were made.",
            )
        begin, end = one or two, two or one
        if begin is not None and end is not None and begin.before != end.after:
            joined.append(FileDelta(name, begin.before, end.after))
    return joined


def _other_tensors(name: str, found: str) -> LayoutError:
    return LayoutError(
        f"tensor {name!r}",
        expected="deltas of one model, of which the later begins where the earlier ends",
        found=found,
        fix="Join deltas in the order in which the changes were made.",
    )


def _twice(what: str) -> CoordinateError:
    return CoordinateError(
        what, expected="to be changed by one of the deltas", found="two that do", fix="Restrict one of them first."
    )
