"""What tensors of one chain of deltas are called in another one that goes out from the same base."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable

from rlforget.delta.composed import ComposedWeights


def renames(before: ComposedWeights, after: ComposedWeights) -> dict[str, str]:
    """Return {name before: name after} of the tensors that are the same by origin and not called the same.

    A delta has one name for a tensor before and after it (`fault_in_names`): where the new name is also that of another
    tensor before, or the old name that of another one after, neither of which is renamed, the tensor is left out, and
    so counts as dropped and added.

    Args:
        before: One chain over a base.
        after: Another one over the same base; a layer that they share is the same object in both.
    """
    old_names, new_names = _by_origin(before), _by_origin(after)
    found: dict[str, str] = {}
    for origin, names in old_names.items():
        gone, come = names - new_names[origin], new_names[origin] - names
        if len(gone) == len(come) == 1:  # more: it was untied or tied meanwhile, and the names that are left tell
            found[gone.pop()] = come.pop()
    while clashing := [
        old
        for old, new in found.items()
        if (new in before and new not in found) or (old in after and old not in found.values())
    ]:
        for old in clashing:
            del found[old]
    return found


def _by_origin(weights: ComposedWeights) -> defaultdict[Hashable, set[str]]:
    names: defaultdict[Hashable, set[str]] = defaultdict(set)
    for name, origin in weights.origins().items():
        names[origin].add(name)
    return names
