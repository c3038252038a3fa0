"""Damaged delta files: each gives a named error or a correct result.

A sound file is taken apart, one to three things in it are changed, and it is put together again with lengths and
checksums that fit, so that the change reaches the code behind them. Then it is read beside its base, applied to a copy
of that, and held against the same weights in a folder. Told apart:

    refused    an error of rlforget.errors, and the weights are as they were
    read       the result is what the file says: its fingerprints fit, and leading forward and back gives the base again
"""

from __future__ import annotations

import random
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from rlforget.delta import Delta, DeltaFile, FileDelta, apply
from rlforget.delta.patching import check_fits
from rlforget.delta.streaming import write_diff
from rlforget.errors import RlforgetError
from rlforget.weights import open_weights
from rlforget_kernels.common.bits import as_bits
from tests.delta.file.forging import Parts, put_together, take_apart
from tests.delta.random_weights import Tensors, write_checkpoint
from tests.kernels.strategies import DTYPES, changed_copy, random_tensor
from tests.torture.damaged_files import MUTATIONS, mutated
from tests.torture.fuzzing import Target, Wrong

CONFIG = b'{"a": 1}'


@dataclass(frozen=True)
class Seed:
    """A sound file, and the weights before."""

    parts: Parts
    content: bytes
    base: Tensors


def seeds() -> list[Seed]:
    """Files of every encoding, dtype and part."""
    found = []
    for number, density in enumerate([0.02, 0.3, 0.9]):
        before = {str(dtype)[6:]: random_tensor(dtype, (61, 5), number) for dtype in DTYPES}
        after = {name: changed_copy(tensor, density, number) for name, tensor in before.items()}
        for self_contained in (False, True):
            found.append(_seed(before, after, self_contained=self_contained))
    flat = torch.Generator().manual_seed(0)
    before = {"w": torch.randn(20_000, generator=flat).bfloat16(), "v": torch.randn(300, generator=flat)}
    after = {"w": torch.zeros(20_000).bfloat16(), "v": before["v"] + 1e-6}
    for self_contained in (False, True):
        found.append(_seed(before, after, self_contained=self_contained))
    before = {"kept": torch.zeros(9), "gone": torch.ones(4), "grown": torch.ones(2, 2).half(), "old": torch.arange(7)}
    after = {
        "kept": torch.ones(9),
        "come": torch.ones(3) > 0,
        "grown": torch.ones(3, 2).half(),
        "new": torch.arange(7) + 1,
    }
    for self_contained in (False, True):
        found.append(_seed(before, after, self_contained=self_contained, rename={"old": "new"}, files=True))
    return found


def _seed(
    before: Tensors, after: Tensors, *, self_contained: bool, rename: dict[str, str] | None = None, files: bool = False
) -> Seed:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x"
        write_diff(before, after, path, self_contained=self_contained, rename=rename, metadata={"domain": "math"})
        if files:
            delta = Delta.load(path, before)
            delta.files["config.json"] = FileDelta("config.json", CONFIG, b'{"a": 2}')
            delta.files["vocab.txt"] = FileDelta("vocab.txt", None, b"x" * 100)
            delta.aliases["tied"] = "kept"
            delta.save(path, self_contained=self_contained, force=True)
        content = path.read_bytes()
    return Seed(take_apart(content), content, before)


def judge(path: Path, base: Tensors, pristine: Tensors, folder: Path) -> str:
    """Read a file and apply it, to live weights and, dry, to the same in a folder. Returns "read" or "refused"."""
    try:
        file = DeltaFile(path)
    except RlforgetError:
        return "refused"
    try:
        delta = file.read(open_weights(base))
    except RlforgetError:
        outcome = "refused"
    else:
        outcome = "read"
        _check_result(file, delta, base)
    target = {name: tensor.clone() for name, tensor in base.items()}
    try:
        apply(target, file)
    except RlforgetError:
        if not _same(target, pristine):
            raise Wrong("refused, but the target changed") from None
    with suppress(RlforgetError):
        check_fits(folder, file)
    if not _same(base, pristine):
        raise Wrong("the base changed")
    return outcome


def _check_result(file: DeltaFile, delta: Delta, base: Tensors) -> None:
    for name, tensor in delta.items():
        if not tensor.changed:
            continue
        held = base.get(name)
        if held is None or (held.dtype, held.shape) != (tensor.dtype, tensor.shape):
            continue  # a self-contained file may be about other weights
        bits = as_bits(held).clone()
        ends = {False: bits.index_select(0, tensor.indices.long()), True: tensor.before_bits}
        if torch.equal(ends[False], ends[True]):
            patch = file.patch(name)
            patch.forward_(bits)
            if not torch.equal(bits.index_select(0, tensor.indices.long()), tensor.after_bits):
                raise Wrong(f"{name!r}: a patch that leads elsewhere")
            if patch.two_way:
                patch.backward_(bits)
                if not torch.equal(bits, as_bits(held)):
                    raise Wrong(f"{name!r}: a patch that does not lead back")


def _same(some: Tensors, others: Tensors) -> bool:
    return some.keys() == others.keys() and all(
        torch.equal(as_bits(some[name]), as_bits(others[name])) for name in some
    )


class DeltaFiles(Target):
    """Files of every encoding, dtype and part."""

    changes = ("plain bytes", *MUTATIONS)

    def __init__(self, folder: Path) -> None:
        self._path = folder / "x.delta.safetensors"
        self._seeds = seeds()
        self._pristine = [{name: tensor.clone() for name, tensor in seed.base.items()} for seed in self._seeds]
        self._folders = [folder / str(at) for at in range(len(self._seeds))]
        self._at = 0
        for at, seed in enumerate(self._seeds):
            write_checkpoint(self._folders[at], seed.base, 0)
            (self._folders[at] / "config.json").write_bytes(CONFIG)
            self._at = at
            self._path.write_bytes(put_together(seed.parts))
            assert self.judge(random.Random(0)) == "read"
            check_fits(self._folders[at], self._path)

    def damage(self, rng: random.Random) -> list[str]:
        """Write one more damaged file."""
        self._at = rng.randrange(len(self._seeds))
        seed = self._seeds[self._at]
        content, names = mutated(seed.content, seed.parts, rng)
        self._path.write_bytes(content)
        return names

    def judge(self, rng: random.Random) -> str:
        """Read and apply it."""
        return judge(self._path, self._seeds[self._at].base, self._pristine[self._at], self._folders[self._at])
