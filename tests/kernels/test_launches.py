"""A list of tensors costs an operator as many launches as one tensor; `patch_` and `sparse_delta` test theirs."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from rlforget_kernels.common.launch import launch
from rlforget_kernels.conflict_score.gpu import foreach_conflict_score
from rlforget_kernels.delta_matmul.gpu import delta_matmul
from rlforget_kernels.delta_stats.gpu import foreach_delta_stats
from rlforget_kernels.fingerprint.gpu import foreach_fingerprint
from rlforget_kernels.fisher_accumulate.gpu import foreach_fisher_accumulate_
from rlforget_kernels.project.gpu import project
from rlforget_kernels.project_rollback.gpu import foreach_subtract_product_
from rlforget_kernels.rollback.gpu import foreach_rollback_
from rlforget_kernels.select_top.gpu import indices_from, leading_histogram
from rlforget_kernels.subtract.gpu import foreach_subtract_
from tests.kernels.strategies import generator

MANY = 12
SHAPE = (8, 5)
OPERATORS = (
    "conflict_score",
    "delta_matmul",
    "delta_stats",
    "fingerprint",
    "fisher_accumulate",
    "project",
    "project_rollback",
    "rollback",
    "select_top",
    "subtract",
)
Lists = tuple[list[Tensor], list[Tensor]]


def bases(weights: list[Tensor]) -> Lists:
    return [torch.ones(SHAPE[0], 2) for _ in weights], [torch.ones(SHAPE[1], 2) for _ in weights]


CALLS: dict[str, tuple[Callable[[list[Tensor], list[Tensor]], object], list[str]]] = {
    "conflict_score": (
        lambda a, b: foreach_conflict_score(a, "fisher", b, a, a, 0.0, 0, [0] * len(a)),
        ["score_kernel"],
    ),
    "delta_matmul": (lambda a, b: delta_matmul(a, b, bases(a)[1]), ["delta_matmul_kernel"]),
    "delta_stats": (foreach_delta_stats, ["measure_kernel"]),
    "fingerprint": (lambda a, _: foreach_fingerprint(a, [0] * len(a)), ["sum_kernel"]),
    "fisher_accumulate": (
        lambda a, b: foreach_fisher_accumulate_(a, b, [None] * len(a)),
        ["fisher_accumulate_kernel"],
    ),
    "project": (lambda a, b: project(a, b, *bases(a)), ["delta_matmul_kernel", "left_product_kernel"]),
    "project_rollback": (
        lambda a, _: foreach_subtract_product_(
            a, bases(a)[0], [torch.ones(2, 2) for _ in a], bases(a)[1], None, [0] * len(a)
        ),
        ["left_terms_kernel", "subtract_product_kernel"],
    ),
    "rollback": (
        lambda a, b: foreach_rollback_(a, b, [None] * len(a), [None] * len(a), 0.0, 0.5, 3, [0] * len(a), False),
        ["rollback_kernel"],
    ),
    "select_top, histogram": (lambda a, _: leading_histogram(a), ["leading_kernel"]),
    "select_top, indices": (
        lambda a, _: indices_from(a, 0x3F000000, 0),
        ["count_kernel", "reserve_kernel", "order_kernel"],
    ),
    "subtract": (lambda a, b: foreach_subtract_(a, b, 3, [0] * len(a)), ["subtract_kernel"]),
}


@pytest.mark.parametrize("name", CALLS)
def test_tensors_of_a_kind_share_their_launches(name: str, monkeypatch: pytest.MonkeyPatch):
    call, kernels = CALLS[name]
    launched = []

    def counted(kernel: Any, *args: Any, **constants: Any) -> None:
        launched.append(kernel.__name__)
        launch(kernel, *args, **constants)

    for operator in OPERATORS:
        monkeypatch.setattr(importlib.import_module(f"rlforget_kernels.{operator}.gpu"), "launch", counted)
    call(*([torch.rand(SHAPE, generator=generator(k)) for k in range(side, MANY + side)] for side in range(2)))
    assert launched == kernels
