"""`project_sparse` beside torch's gather of rows, and the product of a sparse matrix."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from benchmarks.cases.project import bases
from benchmarks.compiled import torch_peers
from benchmarks.harness import Case, Machine
from benchmarks.inputs import DENSITIES
from rlforget_kernels.project_sparse import project_sparse

RANK = 64


def peer(indices: Tensor, values: Tensor, shape: tuple[int, int], u: Tensor, v: Tensor) -> Tensor:
    rows, columns = indices // shape[1], indices % shape[1]
    return (u[rows] * values[:, None]).T @ v[columns]


def make(share: float, machine: Machine) -> Case:
    side = max(int((machine.elements / 4) ** 0.5) // 64 * 64, 64)
    random = torch.Generator(machine.device).manual_seed(0)
    chosen = torch.rand(side * side, generator=random, device=machine.device) < share
    indices = chosen.nonzero().squeeze(1)
    values = torch.randn(len(indices), generator=random, device=machine.device)
    (u,), (v,) = (bases(side, min(RANK, side), 1, machine.device) for _ in range(2))
    arguments = (indices, values, (side, side), u, v)
    sparse = torch.sparse_coo_tensor(
        torch.stack([indices // side, indices % side]), values, (side, side)
    ).to_sparse_csr()

    def by_sparse_product() -> Tensor:
        return u.T @ (sparse @ v)

    def agree() -> bool:
        theirs = by_sparse_product()  # the other peer takes seconds, and GB, where most changed
        return bool((project_sparse(*arguments) - theirs).norm() <= 1e-4 * theirs.norm())

    return Case(
        moved=sum(tensor.nbytes for tensor in (indices, values, u, v)),  # a row of V is read again from the cache
        ours=lambda: project_sparse(*arguments),
        peers=torch_peers(peer, lambda: arguments) | {"torch.sparse": by_sparse_product},
        agree=agree,
        ceiling="read" if machine.device.type == "cpu" else "copy",
        inputs=indices.nbytes + values.nbytes,
        flops=2 * len(indices) * v.shape[1] + 2 * side * u.shape[1] * v.shape[1],
    )


CASES = {f"{name} changed, rank {RANK}": partial(make, share) for name, share in DENSITIES.items()}
