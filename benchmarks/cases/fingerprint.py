"""`fingerprint` beside a plain sum, which is no fingerprint: it is the cheapest pass that torch has."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from benchmarks.compiled import torch_peers
from benchmarks.harness import Case, Machine
from benchmarks.inputs import changed_pair
from rlforget_kernels.common.bits import as_bits
from rlforget_kernels.fingerprint import fingerprint

DTYPES = (torch.bfloat16, torch.float32, torch.float8_e4m3fn, torch.float64)


def peer(words: Tensor) -> Tensor:
    return words.sum()


def make(dtype: torch.dtype, machine: Machine) -> Case:
    before, after = changed_pair(machine, 0.01, dtype)
    words = as_bits(before).view(torch.int32)
    return Case(
        moved=before.nbytes,
        ours=lambda: fingerprint(before),
        peers=torch_peers(peer, lambda: (words,)),
        agree=lambda: not torch.equal(fingerprint(before), fingerprint(after)),
        ceiling="read one",
        inputs=before.nbytes,
    )


CASES = {str(dtype).removeprefix("torch."): partial(make, dtype) for dtype in DTYPES}
