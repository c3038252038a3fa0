"""`gradient_gram_` beside per-sample gradients that are made, all of them, and multiplied.

The error is the largest of the products of the first samples, g_a · g_b, as a share of ‖g_a‖ ‖g_b‖.
"""

from __future__ import annotations

from functools import cache, partial

import torch
from torch import Tensor

from benchmarks.compiled import compiled_peer
from benchmarks.harness import Case, Machine
from rlforget_kernels.gradient_gram import gradient_gram_

SAMPLES, LENGTH = 256, 128
LAYERS = {"k_proj 2048 → 256": (2048, 256), "q_proj 2048 → 2048": (2048, 2048)}
"""Of a model of 3 billion parameters whose feed-forward layers are too wide for the peers' gradients."""


def by_vmap(weight: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The inner products of the gradients of Σ_t y_t · W x_t."""

    def loss(weight: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return (torch.nn.functional.linear(x, weight) * y).sum()

    gradients = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(weight, x, y).flatten(1)
    return gradients @ gradients.T


def by_bmm(x: Tensor, y: Tensor) -> Tensor:
    """The same by someone who knows the layer: without its output."""
    gradients = torch.bmm(y.mT, x).flatten(1)
    return gradients @ gradients.T


def make(fan_in: int, out: int, dtype: torch.dtype, machine: Machine) -> Case:
    samples, length = (16, 8) if machine.quick else (SAMPLES, LENGTH)
    if machine.quick:
        fan_in, out = fan_in // 32, out // 32
    random = torch.Generator(machine.device).manual_seed(0)
    options = {"generator": random, "device": machine.device}
    x, y = (torch.randn(samples, length, size, **options).to(dtype) for size in (fan_in, out))
    weight = torch.randn(out, fan_in, **options).to(dtype)
    gram = torch.zeros(samples, samples, dtype=torch.float64, device=machine.device)

    def ours() -> None:
        gradient_gram_(gram, x, y)

    @cache
    def error() -> float:
        gram.zero_()
        ours()
        rows = torch.bmm(y[:8].double().mT, x[:8].double()).flatten(1)
        expected = rows @ rows.T
        length = expected.diagonal().sqrt()
        return float(((gram[:8, :8] - expected).abs() / (length[:, None] * length)).max())

    return Case(
        moved=x.nbytes + y.nbytes,
        ours=ours,
        peers={
            "torch.func.vmap": lambda: by_vmap(weight, x, y),
            "torch.func.vmap, compiled": compiled_peer(by_vmap, lambda: (weight, x, y)),
            "torch.bmm": lambda: by_bmm(x, y),
            "torch.bmm, compiled": compiled_peer(by_bmm, lambda: (x, y)),
        },
        agree=lambda: error() <= 1e-6,
        ceiling="read",
        inputs=x.nbytes + y.nbytes,
        flops=2 * samples * fan_in * out * (length + samples // 2),
        error=error,
    )


CASES = {
    f"{str(dtype).removeprefix('torch.')}, {name}": partial(make, *LAYERS[name], dtype)
    for dtype, names in ((torch.float32, ["k_proj 2048 → 256"]), (torch.bfloat16, LAYERS))
    for name in names
}
