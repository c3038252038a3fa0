"""Per-sample gradients of log π(completion | prompt), many samples in one backward pass.

A linear layer's weight gradient for one sample is Σ_t y_t x_tᵀ, with x_t its input and y_t the gradient at its output
(Goodfellow, 1510.01799). So one batched backward pass down to the layers' outputs gives every sample's gradient of
every layer; embeddings and norms have rules of the same kind. A model with parameters in other modules takes one
backward pass a sample.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rlforget.interference.completions import completion_log_probs
from rlforget.interference.layer_rules import Rule, rule_for
from rlforget.weights.box import Box
from rlforget.weights.ranks import gathered
from rlforget.weights.sharding import Sharding, fully_sharded, here, is_shard, reducing, settle

logger = logging.getLogger(__name__)

Batch = Mapping[str, Tensor]

_BYTES_AT_ONCE = 1 << 30  # float32 gradients of one batch, before they are gathered


@dataclass(frozen=True)
class Column:
    """Where a parameter's gradient stands in a row.

    Attributes:
        parameter: The parameter.
        span: Its slice of the row.
        indices: The int64 flat indices that are kept, ascending; None keeps them all.
        box: What of the parameter lies on this rank, where it is spread over several: what is kept is in it.
        offset: Where the parameter begins among all coordinates of the columns' parameters, on whichever rank.
    """

    parameter: nn.Parameter
    span: slice
    indices: Tensor | None = None
    box: Box | None = None
    offset: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what of the parameter is in memory here."""
        return tuple(self.parameter.shape) if self.box is None else self.box.sizes


def columns_for(
    parameters: Mapping[str, nn.Parameter],
    indices: Mapping[str, Tensor] | None = None,
    sharding: Sharding | None = None,
) -> dict[str, Column]:
    """Lay the gradients of `parameters` side by side, whole or at `indices` only.

    Args:
        parameters: By name.
        indices: For each the flat indices to keep; None: all that are here.
        sharding: By the same names, what of them lies on this rank; None: they are whole.
    """
    columns: dict[str, Column] = {}
    start = offset = 0
    for name, parameter in parameters.items():
        box = None if sharding is None else sharding.boxes[name]
        kept = _kept(parameter, None if indices is None else indices[name], box)
        stop = start + (parameter.numel() if kept is None else kept.numel())
        columns[name] = Column(parameter, slice(start, stop), kept, box, offset)
        start, offset = stop, offset + parameter.numel()
    return columns


def _kept(parameter: nn.Parameter, indices: Tensor | None, box: Box | None) -> Tensor | None:
    if indices is None and box is not None and not box.is_whole:
        indices = box.to_whole(torch.arange(box.numel))
    whole = indices is None or indices.numel() == parameter.numel()
    return None if indices is None or whole else indices.to(here(parameter).device, torch.int64)


def width(columns: Mapping[str, Column]) -> int:
    """Return how many entries a row has."""
    return max((column.span.stop for column in columns.values()), default=0)


class SampleGradients:
    """Writes per-sample gradients of log π(completion | prompt) into the rows of a matrix.

    The first batch is checked: if two of its samples, done layer by layer, do not agree with a backward pass each, the
    model computes something that the layer rules do not know (a weight used outside its module, say), and the loop
    serves instead.

    Args:
        model: A causal language model. Its parameters' `grad` and `requires_grad` are left as they were found.
        columns: Which parameters, and where they stand in a row.
        batched: False takes one backward pass a sample from the start.
    """

    def __init__(self, model: nn.Module, columns: Mapping[str, Column], *, batched: bool = True) -> None:
        self.model, self.columns = model, columns
        wanted = {id(column.parameter): column for column in columns.values()}
        self._spread = any(column.box is not None for column in columns.values())
        # Where layers themselves are split, as among tensor-parallel ranks, so are their inputs and outputs.
        split = self._spread and not fully_sharded(model)
        self._rules = _rules(model, wanted) if batched and not split else None
        self._checked = False

    @property
    def batched(self) -> bool:
        """Whether gradients are taken layer by layer, many samples at once."""
        return self._rules is not None

    def chunks(self, batch: Batch) -> Iterator[Batch]:
        """Split a batch so that the gradients of each piece fit in bounded memory."""
        numel = max((column.parameter.numel() for column in self.columns.values()), default=1)
        size = max(1, _BYTES_AT_ONCE // (4 * max(numel, width(self.columns), 1)))
        for start in range(0, batch["input_ids"].shape[0], size):
            yield {name: value[start : start + size] for name, value in batch.items()}

    def write(self, batch: Batch, rows: Tensor) -> Tensor:
        """Write the gradients of a batch.

        Args:
            batch: `input_ids`, `attention_mask`, `labels` [B, T].
            rows: [B, width] float32, written.

        Returns:
            [B] log π of each completion.
        """
        if self._rules is not None and not self._checked:
            self._checked = True
            agrees = self._agrees({name: value[:2] for name, value in batch.items()})
            if not (all(gathered(agrees)) if self._spread else agrees):  # each rank looked at what it holds
                logger.info("per-sample gradients of %s: one backward pass a sample", type(self.model).__name__)
                self._rules = None
        with measuring(self.model):
            if self._rules is None:
                return _one_by_one(self.model, self.columns, batch, rows)
            return _layer_by_layer(self.model, self._rules, batch, rows)

    def _agrees(self, batch: Batch) -> bool:
        shape = (batch["input_ids"].shape[0], width(self.columns))
        device = batch["input_ids"].device
        fast, slow = torch.empty(shape, device=device), torch.empty(shape, device=device)
        assert self._rules is not None
        with measuring(self.model):
            try:
                _layer_by_layer(self.model, self._rules, batch, fast)
            except _UnknownShapeError:
                return False
            _one_by_one(self.model, self.columns, batch, slow)
        dtypes = {column.parameter.dtype for column in self.columns.values()}
        loose = 1e-3 if dtypes <= {torch.float32, torch.float64} else 5e-2
        floor = loose * 0.1 * slow.norm()  # for gradients that vanish, such as that of a key's bias
        fast -= slow
        return all(
            not bool(fast[:, c.span].norm() > loose * slow[:, c.span].norm() + floor) for c in self.columns.values()
        )


class _UnknownShapeError(Exception):
    """A layer's input does not have the samples in its first dimension."""


# For a module: the rule for its parameters and, by their names, the columns that they fill.
_Rules = dict[nn.Module, tuple[Rule, dict[str, Column]]]


def _rules(model: nn.Module, wanted: Mapping[int, Column]) -> _Rules | None:
    """Find the rule of each module that owns a wanted parameter; None where one has no rule."""
    rules: _Rules = {}
    for module in model.modules():
        own = {name: wanted[id(p)] for name, p in module._parameters.items() if id(p) in wanted}
        if own:
            rule = rule_for(module)
            if rule is None:
                return None
            rules[module] = (rule, own)
    return rules


def _layer_by_layer(model: nn.Module, rules: _Rules, batch: Batch, rows: Tensor) -> Tensor:
    log_probs, calls = layer_calls(model, rules, batch)
    rows.zero_()
    for module, given, gradient in calls:
        _add(module, *rules[module], given, gradient, rows)
    return log_probs


def layer_calls(
    model: nn.Module, modules: Iterable[nn.Module], batch: Batch
) -> tuple[Tensor, list[tuple[nn.Module, Tensor, Tensor]]]:
    """Take one backward pass of Σ log π(completion | prompt) down to the outputs of some modules.

    Args:
        model: A causal language model; call this inside `measuring`.
        modules: Their first input and their output are tensors.
        batch: `input_ids`, `attention_mask`, `labels` [B, T].

    Returns:
        [B] log π of each completion, and of every call that it depends on: the module, what it was given, and the
        gradient at its output.
    """
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        given = args[0] if args else next(iter(kwargs.values()))
        if not output.requires_grad:  # nothing before it does: the graph starts here
            output.requires_grad_()
        calls.append((module, given.detach(), output))

    with ExitStack() as hooks:
        for module in modules:
            hooks.callback(module.register_forward_hook(record, with_kwargs=True).remove)
        log_probs = completion_log_probs(model, batch)
    outputs = [output for _, _, output in calls]
    gradients = torch.autograd.grad(log_probs.sum(), outputs, allow_unused=True) if outputs else ()
    used = [
        (module, given, gradient)
        for (module, given, _), gradient in zip(calls, gradients, strict=True)
        if gradient is not None
    ]
    return log_probs.detach(), used


def _add(
    module: nn.Module, rule: Rule, own: Mapping[str, Column], given: Tensor, gradient: Tensor, rows: Tensor
) -> None:
    if given.shape[0] != rows.shape[0] or gradient.shape[0] != rows.shape[0]:
        raise _UnknownShapeError
    for name, value in rule(module, given, gradient).items():
        if name in own:
            column, flat = own[name], value.flatten(1)  # [B, numel]
            rows[:, column.span] += flat if column.indices is None else flat[:, column.indices]


def _one_by_one(model: nn.Module, columns: Mapping[str, Column], batch: Batch, rows: Tensor) -> Tensor:
    """The plain way, and the truth that tests hold the fast one to."""
    parameters = [column.parameter for column in columns.values()]
    for parameter in parameters:
        parameter.requires_grad_(True)
    gradients_of = _accumulated if any(map(is_shard, parameters)) else _gradients
    log_probs: list[Tensor] = []
    for sample in range(rows.shape[0]):
        one = {name: value[sample : sample + 1] for name, value in batch.items()}
        log_prob = completion_log_probs(model, one)
        gradients = gradients_of(model, log_prob.sum(), parameters)
        for column, gradient in zip(columns.values(), gradients, strict=True):
            if gradient is None:
                rows[sample, column.span] = 0.0
            else:
                flat, kept = here(gradient).flatten(), column.indices
                if kept is not None and column.box is not None:
                    kept = column.box.to_block(kept)
                rows[sample, column.span] = flat if kept is None else flat[kept]
        log_probs.append(log_prob.detach())
    return torch.cat(log_probs)


def _gradients(_: nn.Module, value: Tensor, parameters: Sequence[nn.Parameter]) -> Sequence[Tensor | None]:
    return torch.autograd.grad(value, parameters, allow_unused=True)


def _accumulated(model: nn.Module, value: Tensor, parameters: Sequence[nn.Parameter]) -> Sequence[Tensor | None]:
    """Take gradients as a training step does: under `fully_shard` they come about in no other way.

    Every rank has the same samples, so that the mean that ranks' gradients are reduced to is each one's own.
    """
    kept = [parameter.grad for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.grad = None
        with reducing(model):
            value.backward()  # type: ignore[no-untyped-call]
        return [parameter.grad for parameter in parameters]
    finally:
        for parameter, gradient in zip(parameters, kept, strict=True):
            parameter.grad = gradient


@contextmanager
def measuring(model: nn.Module) -> Iterator[None]:
    """Set evaluation mode and let no parameter require a gradient; both as found afterwards."""
    settle(model)  # else some of the parameters are copies for the time between two passes
    required = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        for parameter, _ in required:
            parameter.requires_grad_(False)
        with torch.enable_grad():
            yield
    finally:
        for parameter, flag in required:
            parameter.requires_grad_(flag)
        for module, mode in modes:
            module.training = mode
