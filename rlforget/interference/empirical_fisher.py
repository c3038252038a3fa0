"""The diagonal empirical Fisher at the coordinates of a delta."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from rlforget.errors import NonFiniteError, UnknownNameError, ZeroGradientError
from rlforget.interference.completions import Batches, check_finite, check_same, collect, completed
from rlforget.interference.point import Frozen, check_at_after, measured_parameters, moved, toward_before
from rlforget.interference.sample_gradients import Column, SampleGradients, columns_for, width
from rlforget.weights import open_weights
from rlforget.weights.ranks import gathered
from rlforget.weights.sharding import Sharding, together
from rlforget_kernels.fisher_accumulate import fisher_accumulate_

if TYPE_CHECKING:
    from rlforget.delta import Delta

Where = Literal["now", "midpoint", "earlier"]

_SHARE_BACK: dict[str, float] = {"now": 0.0, "midpoint": 0.5, "earlier": 1.0}


@dataclass(frozen=True)
class Fisher:
    """What a domain's samples say about each changed coordinate.

    Attributes:
        values: For each changed tensor, the mean over samples of the squared gradient of log π(completion | prompt), at
            the coordinates that are here: float32 [changed], in the order of the delta's indices. Zero where a tensor
            takes no gradient.
        gradient: Likewise the mean gradient of the loss −log π.
        samples: How many completions went in; none where no changed tensor takes a gradient.
        where: The point of the weights at which it was taken.
        whole_mean: Of a model that is spread over ranks, the mean of `values` on all of them.
    """

    values: dict[str, Tensor]
    gradient: dict[str, Tensor]
    samples: int
    where: Where = "now"
    whole_mean: float | None = None

    @property
    def mean(self) -> float:
        """Mean of `values` over all the changed coordinates."""
        if self.whole_mean is not None:
            return self.whole_mean
        count = sum(value.numel() for value in self.values.values())
        return sum(float(value.double().sum()) for value in self.values.values()) / max(count, 1)


def fisher(
    model: nn.Module,
    batches: Batches,
    at: Delta,
    *,
    samples: int = 256,
    seed: int = 0,
    tokenizer: Any = None,
    where: Where = "now",
    frozen: Frozen = "error",
) -> Fisher:
    """Measure the diagonal empirical Fisher of a domain at the coordinates that a delta changed.

    F = mean over samples of (∇ log π(completion | prompt))², never the square of the mean gradient. Memory follows the
    delta, and 1 GiB of gradients at a time. A model that is spread over ranks takes the same batches on each of them.

    Args:
        model: A transformers causal language model, at the delta's after bits unless `where` is "now".
        batches: A domain or its name, or an iterable of dicts (see `Batches`); completions are sampled from the model
            at the very point where the gradient is taken, unless `labels` give them.
        at: The delta.
        samples: How many completions to take; fewer where `batches` ends before.
        seed: Seed of prompts and completions.
        tokenizer: Encodes a domain's prompts; by default the one in the model's folder.
        where: "now", the model as it is; "earlier", with the delta's before bits; "midpoint", half-way between. The
            model's own bits are back afterwards.
        frozen: "skip" gives frozen parameters and quantised tensors no Fisher (zeros, as all that takes no gradient),
            and leaves them where they are.

    Raises:
        EmptyDomainError: There is nothing to sample.
        LayoutError: The delta is of another architecture.
        NonFiniteError: A gradient is NaN or infinite, as where float16 overflows; the message names the tensor.
        ParameterError: The delta changed a frozen or quantised tensor, and `frozen` is "error".
        ShortDomainError: The domain has fewer prompts than `samples`.
        UnknownNameError: `where` is no such point.
        WrongBaseError: The model is not at the delta's after bits, and `where` is not "now".
        ZeroGradientError: Every gradient is zero at every coordinate.
    """
    if where not in _SHARE_BACK:
        raise UnknownNameError(
            f"where {where!r}",
            expected=f"one of {', '.join(_SHARE_BACK)}",
            found=repr(where),
            fix="Check the spelling.",
        )
    parameters, _ = measured_parameters(model, at, frozen=frozen, shards=True)
    columns = columns_for(parameters, {name: at[name].indices for name in parameters}, at.sharding)
    point: AbstractContextManager[None] = nullcontext()
    if where != "now":
        check_at_after(open_weights(model, shards=True), at)
        point = moved(model, parameters, toward_before(at, _SHARE_BACK[where]))
    if not columns:
        return Fisher(_by_name(torch.empty(0), columns, at), _by_name(torch.empty(0), columns, at), 0, where)
    prompts = collect(model, batches, samples=samples, seed=seed, tokenizer=tokenizer)
    if at.sharding is not None:
        check_same(prompts, samples, seed, where, frozen)
    device = next(model.parameters()).device
    squares = torch.zeros(width(columns), device=device)
    total = torch.zeros(width(columns), device=device)
    count = 0
    gradients = SampleGradients(model, columns)
    with point:
        for batch in completed(model, prompts, seed=seed, tokenizer=tokenizer):
            for chunk in gradients.chunks(batch):
                rows = torch.empty(chunk["input_ids"].shape[0], width(columns), device=device)
                check_finite(model, gradients.write(chunk, rows), "log π of a completion")
                for row in rows:
                    fisher_accumulate_(squares, row)
                total += rows.sum(0)
                count += rows.shape[0]
    _check_squares(squares, columns, at.sharding)
    values, gradient = (squares / count).cpu(), (-total / count).cpu()
    by_name = _by_name(values, columns, at)
    return Fisher(by_name, _by_name(gradient, columns, at), count, where, _whole_mean(by_name, at))


def _by_name(flat: Tensor, columns: dict[str, Column], delta: Delta) -> dict[str, Tensor]:
    return {
        name: flat[columns[name].span] if name in columns else torch.zeros(tensor.changed)
        for name, tensor in delta.items()
        if delta.counts[name]
    }


def _whole_mean(values: dict[str, Tensor], delta: Delta) -> float | None:
    if delta.sharding is None:
        return None
    here = sum(float(value.double().sum()) for name, value in values.items() if name in delta.sharding.counted)
    return sum(gathered(here)) / max(delta.changed, 1)


def _check_squares(squares: Tensor, columns: dict[str, Column], sharding: Sharding | None) -> None:
    together(partial(_check_finite, squares, columns), sharding)
    some, every = bool(squares.any()), squares.numel()
    if not (some if sharding is None else any(gathered(some))):
        raise ZeroGradientError(
            "the Fisher",
            expected="a gradient at one coordinate of the delta or more",
            found=f"zero at all {every}, in every sample",
            fix="Pass batches with scored tokens that the changed weights bear on; from float16, in which small "
            "gradients vanish, go to bfloat16 or float32.",
        )


def _check_finite(squares: Tensor, columns: dict[str, Column]) -> None:
    for name, column in columns.items():
        wrong = int((~squares[column.span].isfinite()).sum())
        if wrong:
            raise NonFiniteError(
                f"the squared gradient of {name!r}",
                expected="finite numbers",
                found=f"NaN or Inf at {wrong} coordinates, in {column.parameter.dtype}",
                fix="Look for NaN or Inf in the model's weights; where they are sound, load it in a dtype of wider "
                "range: float16 overflows beyond 65504, bfloat16 and float32 do not.",
            )
