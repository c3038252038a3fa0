"""Random deltas of everything that a delta file can hold."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from hypothesis import strategies as st

from rlforget.delta import Delta, FileDelta, diff
from rlforget.weights import DTYPES
from tests.delta.random_weights import Tensors, names, random_tensor, shapes, tuned

file_names = st.sampled_from(["config.json", "tokenizer.json", "merges.txt", "a b.json", "ä"])
contents = st.one_of(st.none(), st.binary(max_size=40))


@st.composite
def checkpoints(draw: st.DrawFn) -> tuple[Tensors, Tensors, Delta]:
    """Draw weights before and after, with tensors that came, went, changed shape or dtype or name; and their delta."""
    rng = random.Random(draw(st.integers(0, 2**32)))
    kinds = st.sampled_from(["kept", "kept", "kept", "added", "removed", "resized", "retyped", "renamed"])
    metas = draw(st.dictionaries(names, st.tuples(st.sampled_from(DTYPES), shapes, kinds), max_size=6))
    share = draw(st.sampled_from([0.0, 0.05, 0.5, 1.0]))
    before, after, renamed = {"always": torch.zeros(2)}, {"always": torch.ones(2)}, {}
    for name, (dtype, shape, kind) in metas.items():
        tensor = random_tensor(dtype, shape, rng)
        if kind != "added":
            before[name] = tensor
        if kind in ("kept", "renamed"):
            changed = tuned(tensor, share, rng)
            after[f"{name}|new" if kind == "renamed" else name] = changed
            if kind == "renamed":
                renamed[name] = f"{name}|new"
        elif kind != "removed":
            other = rng.choice(DTYPES) if kind == "retyped" else dtype
            after[name] = random_tensor(other, (*shape, 2) if kind == "resized" else shape, rng)
    delta = diff(
        before,
        after,
        rename=renamed,
        metadata=draw(st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=2)),
    )
    files = draw(st.dictionaries(file_names, st.tuples(contents, contents), max_size=3))
    carried = [FileDelta(name, *sides) for name, sides in files.items()]
    return (
        before,
        after,
        Delta(
            delta.values(),
            whole=delta.whole.values(),
            files=carried,
            renamed=delta.renamed,
            aliases=delta.aliases,
            metadata=delta.metadata,
        ),
    )


@contextmanager
def saved(delta: Delta, **options: bool) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.delta.safetensors"
        delta.save(path, **options)
        yield path


def loaded(content: bytes, base: Tensors | None = None) -> Delta:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x"
        path.write_bytes(content)
        return Delta.load(path, base)
