"""The span of a domain's per-sample gradients: its eigenvalues, and the part of a change of the weights inside it.

A direction outside of the span changes no sample's log π(completion | prompt) to first order. The span is kept as the
gradients themselves, W [n, N], and the eigenvectors of W Wᵀ [n, n]: its projector is Wᵀ V Λ⁻¹ Vᵀ W.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rlforget.errors import ConfigError, NonFiniteError
from rlforget.interference import sample_space
from rlforget.interference.completions import Batch, Batches, check_same, collect, completed
from rlforget.interference.sample_gradients import Column, SampleGradients, columns_for, width
from rlforget_kernels.common.arithmetic import widened

_FLOOR = 1e-6  # of the largest eigenvalue: what lies below is the rounding of float32 gradients


class Span:
    """The span of some gradients, or of its most important directions.

    Args:
        rows: W, float32 [n, N]; kept, not copied.
        rank: Directions to keep at most, those of the largest eigenvalues; None keeps all.

    Attributes:
        eigenvalues: Of W Wᵀ, those that are kept, the largest first: float64 [rank]. Those of rounding are not.

    Raises:
        ConfigError: A rank below 1.
        NonFiniteError: Gradients that are all zero, or not finite.
    """

    def __init__(self, rows: Tensor, rank: int | None = None) -> None:
        if rank is not None and rank < 1:
            raise ConfigError("rank", expected="at least 1", found=str(rank), fix="Ask for one direction or more.")
        self._rows = rows
        product = sample_space.gram(rows)
        values, vectors = _eigen(product)
        kept = int((values > _FLOOR * values[0]).sum())
        kept = kept if rank is None else min(kept, rank)
        self.eigenvalues = values[:kept]
        self._vectors = vectors[:, :kept]

    @property
    def rank(self) -> int:
        """How many directions it has."""
        return self.eigenvalues.numel()

    def coordinates(self, vector: Tensor) -> Tensor:
        """Return the coordinates of a vector's part in the span along the orthonormal eigenvectors.

        Args:
            vector: float32 [N].

        Returns:
            float64 [rank], in the order of `eigenvalues`.
        """
        return (self._vectors.T @ sample_space.forward(self._rows, vector)) / self.eigenvalues.sqrt()

    def part(self, vector: Tensor) -> Tensor:
        """Return the part of a vector, float32 [N], that lies in the span, likewise."""
        weights = self._vectors @ (self.coordinates(vector) / self.eigenvalues.sqrt())
        return sample_space.backward(self._rows, weights)


def _eigen(product: Tensor) -> tuple[Tensor, Tensor]:
    """Return the eigenvalues, the largest first, and the eigenvectors of a Gram matrix."""
    if not bool(product.isfinite().all()) or float(product.diagonal().sum()) <= 0:
        raise NonFiniteError(
            "the per-sample gradients",
            expected="finite numbers, not all zero",
            found="NaN, Inf or zeros alone",
            fix="Look for NaN or Inf in the model's weights, and that the domain's completions are not empty.",
        )
    values, vectors = torch.linalg.eigh(product)
    return values.flip(0), vectors.flip(1)


def whole_columns(model: nn.Module, *, trained: bool = False) -> dict[str, Column]:
    """Lay a model's floating-point parameters side by side, tied ones once; `trained` leaves the frozen ones out."""
    return columns_for(
        {name: p for name, p in model.named_parameters() if p.is_floating_point() and (p.requires_grad or not trained)}
    )


def values_of(columns: Mapping[str, Column]) -> Tensor:
    """Return the parameters' present values, float32 [N]."""
    return torch.cat([widened(column.parameter.detach()).float().flatten() for column in columns.values()])


def write_values(columns: Mapping[str, Column], values: Tensor) -> None:
    """Set the parameters, each rounded to its own dtype, from float32 [N]."""
    with torch.no_grad():
        for column in columns.values():
            column.parameter.copy_(values[column.span].view(column.parameter.shape))


def gradient_rows(
    model: nn.Module, columns: Mapping[str, Column], batches: Batches, *, samples: int, seed: int, tokenizer: Any
) -> Tensor:
    """Return the gradients of log π(completion | prompt) at the model's present weights, over the root of their number.

    Completions are sampled from the model, where `batches` does not give them.

    Returns:
        float32 [n, N].

    Raises:
        EmptyDomainError: There is nothing to sample.
    """
    prompts = collect(model, batches, samples=samples, seed=seed, tokenizer=tokenizer)
    count = sum(int(batch["input_ids"].shape[0]) for batch in prompts)
    rows = torch.empty(count, width(columns), device=next(model.parameters()).device)
    start = 0
    for block in _blocks(model, columns, prompts, seed=seed, tokenizer=tokenizer):
        rows[start : start + len(block)] = block
        start += len(block)
    rows /= count**0.5
    return rows


def squared_gradients(
    model: nn.Module, columns: Mapping[str, Column], batches: Batches, *, samples: int, seed: int, tokenizer: Any
) -> Tensor:
    """Return the mean of the squared gradients, the diagonal empirical Fisher: float32 [N]; see `gradient_rows`.

    Of columns that are spread over ranks, what lies on this one; every rank has to call this, with the same arguments.
    """
    prompts = collect(model, batches, samples=samples, seed=seed, tokenizer=tokenizer)
    if any(column.box is not None for column in columns.values()):
        check_same(prompts, samples, seed)
    total, count = torch.zeros(width(columns), device=next(model.parameters()).device), 0
    for block in _blocks(model, columns, prompts, seed=seed, tokenizer=tokenizer):
        total += block.square_().sum(0)
        count += len(block)
    return total / count


def _blocks(
    model: nn.Module, columns: Mapping[str, Column], prompts: list[Batch], *, seed: int, tokenizer: Any
) -> Iterator[Tensor]:
    gradients = SampleGradients(model, columns)
    for batch in completed(model, prompts, seed=seed, tokenizer=tokenizer):
        for chunk in gradients.chunks(batch):
            rows = torch.empty(chunk["input_ids"].shape[0], width(columns), device=chunk["input_ids"].device)
            gradients.write(chunk, rows)
            yield rows
