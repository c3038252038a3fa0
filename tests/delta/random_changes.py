"""Random checkpoints and what may become of them: tensors that change, come, go, and change shape, dtype or name."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path

import torch
from hypothesis import strategies as st

from rlforget.weights import DTYPES
from tests.delta.random_weights import Tensors, names, random_tensor, shapes, tuned, write_checkpoint

KINDS = ("kept", "kept", "kept", "resized", "retyped", "added", "removed", "renamed")
OTHER_FILES = ("config.json", "tokenizer.json", "README.md")


@dataclass
class Side:
    """A checkpoint: its tensors, further names of them, its other files, and in how many shards it lies (0: none)."""

    tensors: Tensors = field(default_factory=dict)
    ties: dict[str, str] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    shards: int = 0

    def write(self, folder: Path) -> Path:
        write_checkpoint(folder, self.tensors, self.shards, self.ties)
        (folder / "config.json").unlink()
        for name, data in self.files.items():
            (folder / name).write_bytes(data)
        return folder


@dataclass
class Change:
    """A checkpoint before and after, {name before: name after} of what was renamed, and whether a tensor's old bits are
    nowhere to be found after: it was dropped, resized or retyped.
    """

    before: Side = field(default_factory=Side)
    after: Side = field(default_factory=Side)
    renamed: dict[str, str] = field(default_factory=dict)
    loses: bool = False


@st.composite
def changes(draw: st.DrawFn) -> Change:
    """Draw a change that leaves at least one tensor its shape and dtype."""
    rng = random.Random(draw(st.integers(0, 2**32)))
    chosen = draw(st.lists(names, min_size=1, max_size=7, unique=True))
    kinds = ["kept", *(draw(st.sampled_from(KINDS)) for _ in chosen[1:])]
    change = Change()
    for name, kind in zip(chosen, kinds, strict=True):
        _add_tensor(draw, change, name, kind, rng)
    _tie(draw, change, rng)
    _draw_files(draw, change)
    for side in (change.before, change.after):
        side.shards = draw(st.integers(0, 3)) if side.tensors else 0
    return change


def _add_tensor(draw: st.DrawFn, change: Change, name: str, kind: str, rng: random.Random) -> None:
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.one_of(shapes, st.just((rng.randrange(1, 1500),))))
    before = random_tensor(dtype, shape, rng)
    share = draw(st.sampled_from([0.0, 0.01, 0.5, 1.0]))
    after = stepped(before, share, rng) if draw(st.booleans()) else tuned(before, share, rng)
    if kind == "resized":
        after = random_tensor(dtype, (*shape, rng.randrange(3)), rng)
    if kind == "retyped":
        after = random_tensor(rng.choice([other for other in DTYPES if other != dtype]), shape, rng)
    change.loses |= kind in ("removed", "resized", "retyped")
    if kind != "added":
        change.before.tensors[name] = before
    if kind == "renamed":
        change.renamed[name] = f"{name}/new"
    if kind != "removed":
        change.after.tensors[change.renamed.get(name, name)] = after


def stepped(tensor: torch.Tensor, share: float, rng: random.Random) -> torch.Tensor:
    """Return a copy in which about `share` of the coordinates are one step on in their lowest byte."""
    copy = tensor.clone()
    lowest = copy.view(-1).view(torch.uint8).view(-1, tensor.itemsize)[:, 0]
    for i in range(len(lowest)):
        if rng.random() < share:
            lowest[i] = lowest[i] ^ 1
    return copy


def _tie(draw: st.DrawFn, change: Change, rng: random.Random) -> None:
    """Give a tensor that both sides call the same a second name: on both, or on one, where the other has it apart."""
    both = sorted(change.before.tensors.keys() & change.after.tensors.keys())
    tied = draw(st.sampled_from(["neither", "both", "before", "after"]))
    if not both or tied == "neither":
        return
    name = rng.choice(both)
    for here, side in (("before", change.before), ("after", change.after)):
        if tied in ("both", here):
            side.ties[f"{name}/tied"] = name
        else:
            side.tensors[f"{name}/tied"] = tuned(side.tensors[name], rng.choice([0.0, 0.5]), rng)


def _draw_files(draw: st.DrawFn, change: Change) -> None:
    content = st.one_of(st.none(), st.binary(max_size=40))
    for name in OTHER_FILES:
        before = draw(content)
        after = before if draw(st.booleans()) else draw(content)
        for side, data in ((change.before, before), (change.after, after)):
            if data is not None:
                side.files[name] = data
