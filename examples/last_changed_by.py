"""Which stage last changed a weight? `git blame` for a tensor, and for a whole model by layer.

python examples/last_changed_by.py history model.layers.0.mlp.up_proj.weight
"""

from __future__ import annotations

import sys

import rlforget as rf


def main(folder: str, tensor: str) -> None:
    history = rf.History.open(folder)
    blame = history.blame(tensor)
    numel = blame.last.numel()
    print(f"{tensor}, {numel:,} coordinates, last changed by")
    for number in range(-1, len(blame.stages)):
        name = "base" if number < 0 else blame.stages[number].name
        print(f"  {int((blame.last == number).sum()) / numel:6.1%}  {name}")
    back = int((blame.returns > 0).sum())
    print(f"{back:,} of them came back to bits that they had before: a later stage undid an earlier one.")

    print("\nchanges a coordinate, by layer")
    for layer, count in history.blame_summary().layers.items():
        print(f"  {'outside' if layer is None else f'layer {layer}':9}  {count.changes / count.numel:.2f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
