"""The Gram matrix of per-sample gradients in one sweep down the model, a transformer layer at a time.

`LayerGradients` holds all layers of two blocks of samples, so that with b blocks every sample goes through the model
(b + 1) / 2 times. Here the residual stream between layers is kept instead, in the host's memory: then a layer's inputs
and output gradients of *all* samples are had by computing that one layer again, its part of the Gram matrix is taken in
one call, and the gradient goes on to the layer below. Embeddings and what comes after the layers, which may share a
weight and whose outputs are as wide as the vocabulary, go by pairs of blocks, through themselves alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from typing import Any

import torch
from torch import Tensor, nn

from rlforget.interference.completions import completion_log_probs
from rlforget.interference.gradient_factors import Rule, stacked
from rlforget.interference.gram import Captured, LayerGradients
from rlforget.interference.layer_chain import Call, NotLayeredError, Reached, chain_of, run_noting, skipped, stopped
from rlforget.interference.rows import Rows, count
from rlforget.interference.sample_gradients import measuring

# Moves some parameters to where rows are taken, and back.
Point = Callable[[Iterable[nn.Parameter]], AbstractContextManager[None]]
Side = tuple[Sequence[Rows], Point]

HELD_BYTES = 10 << 30  # of one layer's inputs and output gradients, of all samples

_Rules = Mapping[nn.Module, tuple[Rule, dict[str, str]]]


def layered_gram(layers: LayerGradients, sides: Sequence[Side]) -> Tensor:
    """Return the Gram matrix of the rows of all sides, in their order.

    Args:
        layers: Says which parameters count, and their rules.
        sides: Blocks of rows and the points they are taken at. A side may be empty.

    Returns:
        float64 [n, n], on the CPU.

    Raises:
        NonFiniteError: A gradient is NaN or infinite; the message names the parameter.
        NotLayeredError: The model has no chain of layers, or a parameter that no rule serves in one place.
    """
    sweep = _Sweep(layers, sides)
    for side in range(len(sides)):
        sweep.up(side)
    gram = sweep.outer()
    for position in reversed(range(len(sweep.chain))):
        gram += sweep.layer(position)
    return gram + sweep.pairs()


class _Sweep:
    def __init__(self, layers: LayerGradients, sides: Sequence[Side]) -> None:
        self._model, self._layers, self._sides = layers.model, layers, sides
        self.chain = chain_of(layers.model)
        inside = [set(layer.modules()) for layer in self.chain]
        self._inner: list[_Rules] = [{m: r for m, r in layers.rules.items() if m in own} for own in inside]
        self._outer: _Rules = {m: r for m, r in layers.rules.items() if not any(m in own for own in inside)}
        within = {id(parameter) for layer in self.chain for parameter in layer.parameters()}
        self._outside = [parameter for parameter in self._model.parameters() if id(parameter) not in within]
        places: dict[str, set[int]] = {}
        for place, rules in enumerate([*self._inner, self._outer]):
            for _, names in rules.values():
                for name in names.values():
                    places.setdefault(name, set()).add(place)
        if set(places) != set(layers.parameters) or any(len(found) > 1 for found in places.values()):
            raise NotLayeredError
        self._blocks = [(rows, side) for side, (blocks, _) in enumerate(sides) for rows in blocks]
        self._inputs: list[list[Call]] = []  # of each block, of each layer
        self._ends: list[Tensor] = []  # the last layer's output
        self._pulled: list[Tensor] = []  # the gradient at the output of the layer that is next

    def up(self, side: int) -> None:
        """Run every block of a side, and keep what goes into each layer."""
        blocks, point = self._sides[side]
        with point(self._model.parameters()), measuring(self._model), torch.no_grad():
            for rows in blocks:
                calls, end = run_noting(self.chain, lambda rows=rows: completion_log_probs(self._model, rows))  # type: ignore[misc]
                self._inputs.append(calls)
                self._ends.append(end)

    def outer(self) -> Tensor:
        """Take the gradients at the last layer's outputs, and a Gram matrix of zeros to add to."""
        for block, rows in self._each(self._outside):
            _, gradient = self._tail(block, rows, {})
            self._pulled.append(gradient.cpu())
        total = sum(count(rows) for rows, _ in self._blocks)
        return torch.zeros(total, total, dtype=torch.float64)

    def layer(self, position: int) -> Tensor:
        """Return the part of one layer, and pull the gradients down through it."""
        layer, rules = self.chain[position], self._inner[position]
        total: Tensor | None = None
        groups = _groups(rules, sum(rows["input_ids"].numel() for rows, _ in self._blocks))
        below: list[Tensor] = []
        for last, group in ((i == len(groups) - 1, group) for i, group in enumerate(groups)):
            found: list[Captured] = []
            for block, rows in self._each(list(layer.parameters())):
                call = self._inputs[block][position]
                hidden = call.hidden.to(rows["input_ids"].device).detach().requires_grad_()
                captured, gradient = self._segment(
                    group, rows, lambda call=call, hidden=hidden: call.again(layer, hidden), hidden,  # type: ignore[misc]
                    self._pulled[block].to(hidden.device),
                )  # fmt: skip
                found.append(captured)
                if last:
                    below.append(gradient.cpu())
            for name in sorted({name for one in found for name in one}):
                uses = {len(one.get(name, [])) for one in found}
                if len(uses) != 1:
                    raise NotLayeredError
                together = [stacked([one[name][use] for one in found]) for use in range(uses.pop())]
                part = self._layers.gram({name: together})
                total = part if total is None else total + part
                for one in found:
                    del one[name]
        self._pulled = below
        if total is None:
            n = sum(count(rows) for rows, _ in self._blocks)
            return torch.zeros(n, n, dtype=torch.float64)
        return total

    def pairs(self) -> Tensor:
        """Return the part of what is outside the layers, by pairs of blocks."""
        sizes = [count(rows) for rows, _ in self._blocks]
        starts = torch.tensor([0, *sizes]).cumsum(0).tolist()
        gram = torch.zeros(starts[-1], starts[-1], dtype=torch.float64)
        if not self._outer:
            return gram
        starting = [self._head(block, rows) for block, rows in self._each(self._outside)]

        def held(block: int, rows: Rows) -> Captured:
            return _merged(self._tail(block, rows, self._outer)[0], starting[block])

        for i, (first, side) in enumerate(self._blocks):
            here = slice(starts[i], starts[i + 1])
            with self._sides[side][1](self._outside), measuring(self._model):
                one = held(i, first)
                gram[here, here] = self._layers.gram(one)
            for j, rows in self._each(self._outside, below=i):
                there = slice(starts[j], starts[j + 1])
                gram[here, there] = self._layers.gram(one, held(j, rows))
                gram[there, here] = gram[here, there].T
        return gram

    def _each(self, moving: Sequence[nn.Parameter], below: int | None = None) -> Iterator[tuple[int, Rows]]:
        """Yield blocks, all or those before one, with the parameters that it takes at their points."""
        block = 0
        for blocks, point in self._sides:
            taken = blocks if below is None else blocks[: max(0, below - block)]
            if taken:
                with point(moving), measuring(self._model):
                    yield from enumerate(taken, block)
            block += len(blocks)

    def _tail(self, block: int, rows: Rows, rules: _Rules) -> tuple[Captured, Tensor]:
        """Run what comes after the layers, from the last one's output."""
        hidden = self._ends[block].to(rows["input_ids"].device).detach().requires_grad_()
        with skipped(self.chain, self._inputs[block], hidden):
            return self._segment(rules, rows, lambda: completion_log_probs(self._model, rows).sum(), hidden, None)

    def _head(self, block: int, rows: Rows) -> Captured:
        """Run what comes before the layers, with the gradient at the first one's input."""

        def run() -> Tensor:
            with stopped(self.chain[0]) as reached, suppress(Reached):
                completion_log_probs(self._model, rows)
            return reached[0]

        return self._segment(self._outer, rows, run, None, self._pulled[block].to(rows["input_ids"].device))[0]

    def _segment(
        self, rules: _Rules, rows: Rows, run: Callable[[], Tensor], entry: Tensor | None, gradient: Tensor | None
    ) -> tuple[Captured, Tensor]:
        """Differentiate one piece of the model: the factors of its parameters, and the gradient at its entry."""
        calls: list[tuple[nn.Module, Tensor, Tensor]] = []

        def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
            given = args[0] if args else next(iter(kwargs.values()))
            if not output.requires_grad:
                output.requires_grad_()
            calls.append((module, given.detach(), output))

        with ExitStack() as hooks:
            for module in rules:
                hooks.callback(module.register_forward_hook(record, with_kwargs=True).remove)
            value = run()
        wanted = [output for _, _, output in calls] + ([] if entry is None else [entry])
        found = torch.autograd.grad(value, wanted, gradient, allow_unused=True) if value.requires_grad else ()
        captured: Captured = {}
        for (module, given, _), pulled in zip(calls, found, strict=False):
            if pulled is None:
                continue
            rule, names = rules[module]
            if given.shape[0] != count(rows) or pulled.shape[0] != count(rows):
                raise NotLayeredError
            for short, factors in rule(module, given, pulled).items():
                if short in names:
                    captured.setdefault(names[short], []).append(factors)
        at_entry = found[-1] if entry is not None and found else None
        return captured, torch.zeros(0) if at_entry is None else at_entry


def _groups(rules: _Rules, positions: int) -> list[_Rules]:
    """Split a layer's modules so that their inputs and output gradients, of so many positions, fit `HELD_BYTES`."""
    groups: list[dict[nn.Module, tuple[Rule, dict[str, str]]]] = [{}]
    held = 0
    for module, rule in rules.items():
        weight = module.weight
        assert isinstance(weight, Tensor)
        size = sum(weight.shape) * positions * weight.element_size() if weight.dim() > 1 else 0
        if groups[-1] and held + size > HELD_BYTES:
            groups.append({})
            held = 0
        groups[-1][module] = rule
        held += size
    return list(groups)


def _merged(one: Captured, other: Captured) -> Captured:
    return {name: [*one.get(name, []), *other.get(name, [])] for name in {**one, **other}}
