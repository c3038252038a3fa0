"""What did a fine-tune change? Shares, norms and steps by kind of tensor and by layer, and the tensors that moved most.

python examples/what_changed.py checkpoints/math checkpoints/writing
"""

from __future__ import annotations

import sys

from rlforget.delta import measure_diff


def main(before: str, after: str) -> None:
    stats = measure_diff(before, after)  # range by range: it holds neither checkpoint, however large they are
    print(stats.table())
    total = stats.total
    print(f"\n{1 - total.changed / total.numel:.1%} of the coordinates kept every bit.")

    print("\nThe five tensors that moved furthest, by the mean square of a coordinate:")
    changes = sorted(stats.tensors.items(), key=lambda item: -item[1].sum_of_squares / item[1].numel)
    for name, change in changes[:5]:
        print(f"  {(change.sum_of_squares / change.numel) ** 0.5:9.2e}  {change.changed / change.numel:6.1%}  {name}")


if __name__ == "__main__":
    main(*sys.argv[1:])
