"""Two fine-tunes of one base: do they touch the same weights, and what if both changes are made?

python examples/overlap_and_merge.py checkpoints/base checkpoints/first checkpoints/second checkpoints/merged
"""

from __future__ import annotations

import sys

import torch

import rlforget as rf


def main(base: str, first: str, second: str, out: str) -> None:
    one, other = rf.diff(base, first), rf.diff(base, second)
    common = rf.overlap(one, other).coordinates
    print(f"changed: {one.changed:,} and {other.changed:,} of {one.numel:,} coordinates, {common.common:,} by both")
    print(f"Jaccard {common.jaccard:.3f}, by chance {common.jaccard_by_chance:.3f}")

    # Where both changed a coordinate no bits can be right for both: the first one keeps it.
    free = {name: change.indices[~torch.isin(change.indices, one[name].indices)] for name, change in other.items()}
    merged = rf.Delta.sum([one, other.restrict(free)])
    rf.apply(base, merged, out)
    print(f"merged: {merged.changed:,} coordinates; the second one's share {1 - common.of_second:.1%}")


if __name__ == "__main__":
    main(*sys.argv[1:])
