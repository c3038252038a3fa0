"""No operator takes more than 64 MiB beside its arguments and what it returns: none copies a tensor, none holds δ."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks.memory import peak_extra
from rlforget_kernels.common import scratch
from rlforget_kernels.conflict_score import conflict_score
from rlforget_kernels.delta_matmul import delta_matmul
from rlforget_kernels.delta_stats import delta_stats
from rlforget_kernels.fingerprint import fingerprint
from rlforget_kernels.fisher_accumulate import fisher_accumulate_
from rlforget_kernels.gradient_gram import gradient_gram_
from rlforget_kernels.patch import patch_
from rlforget_kernels.project import project
from rlforget_kernels.project_rollback import project_rollback_
from rlforget_kernels.project_sparse import project_sparse
from rlforget_kernels.rollback import rollback_
from rlforget_kernels.select_top import select_top
from rlforget_kernels.sparse_delta import sparse_delta
from rlforget_kernels.subtract import subtract_

MOST = 64 << 20
COLUMNS = 4096
RANK = 16
Call = Callable[[], object]


def bfloat16(rows: int) -> Tensor:
    """80 MB where `rows` is 10,000."""
    return torch.ones(rows, COLUMNS, dtype=torch.bfloat16)


def changed(rows: int) -> Tensor:
    after = bfloat16(rows)
    after.view(-1)[::20] = 2.0
    return after


def basis(rows: int) -> Tensor:
    return torch.full((rows, RANK), 0.01)


def changes_of(rows: int) -> Call:
    before, after = bfloat16(rows), changed(rows)
    return lambda: sparse_delta(before, after)


def stats(rows: int) -> Call:
    before, after = bfloat16(rows), changed(rows)
    return lambda: delta_stats(before, after)


def patch(rows: int) -> Call:
    weight, indices = bfloat16(rows), torch.arange(0, rows * COLUMNS, 2, dtype=torch.int32)
    bits = torch.full(indices.shape, 0x3F80, dtype=torch.int16)
    return lambda: patch_(weight, indices, bits, bits)


def fingerprints(rows: int) -> Call:
    weight = bfloat16(rows)
    return lambda: fingerprint(weight)


def fisher(rows: int) -> Call:
    total, gradient = torch.zeros(rows, COLUMNS), bfloat16(rows)
    return lambda: fisher_accumulate_(total, gradient)


def scores(rows: int) -> Call:
    delta, earlier, later = (torch.ones(rows, COLUMNS) for _ in range(3))
    return lambda: conflict_score(delta, "two_fisher", earlier, later)


def selection(rows: int) -> Call:
    score = torch.rand(rows, COLUMNS)
    return lambda: select_top([score], score.numel() // 50)


def rollback(rows: int) -> Call:
    weight, before = changed(rows), bfloat16(rows)
    return lambda: rollback_(weight, before, strength=0.5, seed=3)


def subtraction(rows: int) -> Call:
    weight, u = bfloat16(rows), torch.full((rows, COLUMNS), 1e-3)
    return lambda: subtract_(weight, u, seed=3)


def product(rows: int) -> Call:
    before, after, right = bfloat16(rows), changed(rows), basis(COLUMNS)
    return lambda: delta_matmul([before], [after], [right])


def projection(rows: int) -> Call:
    before, after, u, v = bfloat16(rows), changed(rows), basis(rows), basis(COLUMNS)
    return lambda: project([before], [after], [u], [v])


def projection_of_changes(rows: int) -> Call:
    indices = torch.arange(0, rows * COLUMNS, 8, dtype=torch.int32)
    values, u, v = torch.ones(indices.shape), basis(rows), basis(COLUMNS)
    return lambda: project_sparse(indices, values, (rows, COLUMNS), u, v)


def projected_rollback(rows: int) -> Call:
    before, weight, u, v = bfloat16(rows), changed(rows), basis(rows), basis(COLUMNS)
    shrinkage = torch.ones(RANK, RANK)
    return lambda: project_rollback_(weight, before, u, v, shrinkage)


def gram(form: str) -> Callable[[int], Call]:
    """Gradients that take 1 GB, of 64 samples; or products of 10,000 positions, which take 400 MB."""

    def make(rows: int) -> Call:
        samples, length, features = (64, 4, 2048) if form == "explicit" else (rows // 50, 50, 64)
        samples = min(samples, rows)
        x, y = (torch.randn(samples, length, features) for _ in range(2))
        total = torch.zeros(samples, samples, dtype=torch.float64)
        return lambda: gradient_gram_(total, x, y, form=form)

    return make


CASES: dict[str, Callable[[int], Call]] = {
    "sparse_delta": changes_of,
    "delta_stats": stats,
    "patch": patch,
    "fingerprint": fingerprints,
    "fisher_accumulate": fisher,
    "conflict_score": scores,
    "select_top": selection,
    "rollback": rollback,
    "subtract": subtraction,
    "delta_matmul": product,
    "project": projection,
    "project_sparse": projection_of_changes,
    "project_rollback": projected_rollback,
    "gradient_gram explicit": gram("explicit"),
    "gradient_gram pairwise": gram("pairwise"),
}


@pytest.mark.parametrize("make", CASES.values(), ids=CASES)
def test_extra_memory_is_bounded(make: Callable[[int], Call], monkeypatch: pytest.MonkeyPatch):
    make(100)()  # compiles
    monkeypatch.setattr(scratch, "_free", [])  # as if nothing had been called before
    call = make(10_000)
    extra = peak_extra(call, torch.device("cpu"))
    if extra is None:
        pytest.skip("needs a kernel that tells a process's peak memory")
    assert extra < MOST
