"""`sparse_delta` beside `nonzero(a != b)` and two gathers."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from benchmarks.compiled import torch_peers
from benchmarks.harness import Case, Machine
from benchmarks.inputs import DENSITIES, changed_pair
from rlforget_kernels.common.bits import as_bits
from rlforget_kernels.sparse_delta import sparse_delta

DTYPES = (torch.float32, torch.float8_e4m3fn, torch.float64)
SIZES = {"4 Ki": 2**12, "64 Ki": 2**16, "1 Mi": 2**20, "16 Mi": 2**24}


def peer(old: Tensor, new: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    where = (old != new).nonzero().squeeze(1)
    return where, old[where], new[where]


def make(share: float, dtype: torch.dtype, size: int | None, machine: Machine) -> Case:
    machine = machine.smaller(size or machine.elements)
    before, after = changed_pair(machine, share, dtype)
    old, new = as_bits(before), as_bits(after)

    def agree() -> bool:
        ours = sparse_delta(before, after)
        return all(torch.equal(part.long(), theirs.long()) for part, theirs in zip(ours, peer(old, new), strict=True))

    changed = int((old != new).sum())
    return Case(
        moved=2 * before.nbytes + changed * (4 + 2 * dtype.itemsize),
        ours=lambda: sparse_delta(before, after),
        peers=torch_peers(peer, lambda: (old, new)),
        agree=agree,
        ceiling="read",
        least=2 * before.nbytes,
        inputs=2 * before.nbytes,
    )


CASES = {f"bfloat16, {name} changed": partial(make, share, torch.bfloat16, None) for name, share in DENSITIES.items()}
CASES |= {f"{str(dtype).removeprefix('torch.')}, 1% changed": partial(make, 0.01, dtype, None) for dtype in DTYPES}
CASES |= {f"bfloat16, 1% changed, {name}": partial(make, 0.01, torch.bfloat16, size) for name, size in SIZES.items()}
