"""The form that scales: W = [G_A; G_B] by passes of the model, without a gradient being stored.

W Wᵀ comes from the layers' inputs and output gradients, a layer at a time (`layered_gram`) or by pairs of blocks, G_A v
from forward-mode passes, and Wᵀ y from one weighted backward pass. Beyond the model it holds vectors over the weights,
one of them on the model's device, and the activations of a few blocks of rows.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import partial
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn

from rlforget.counting import counted
from rlforget.errors import NonFiniteError
from rlforget.interference.forward_mode import as_in_backward, completion_derivative
from rlforget.interference.gram import LayerGradients
from rlforget.interference.layer_chain import NotLayeredError
from rlforget.interference.layered import layered_gram
from rlforget.interference.linearisation import Directions, Linearisation
from rlforget.interference.rows import Rows, count, cut, total
from rlforget.interference.weighted_gradient import add_weighted_gradient_
from rlforget.weights.ranks import mine, summed, world

logger = logging.getLogger(__name__)

_MANY_BLOCKS = 4  # from which on one sweep by layers costs less than pairs


class StreamedGradients:
    """Rows that are taken again whenever they are needed.

    Args:
        linearisation: The rows and their points.
        block: Rows whose activations are held at once; two blocks are. Where the model is no chain of layers, or ranks
            share the work, each row goes through it (b + 1) / 2 times on average for the Gram matrix with b blocks, so
            the largest block that memory allows is the fastest.
    """

    def __init__(self, linearisation: Linearisation, *, block: int = 16) -> None:
        self._at = linearisation
        self._model = linearisation.sources.model
        self._columns = linearisation.sources.columns
        names = {id(parameter): name for name, parameter in self._model.named_parameters()}
        self._named = {name: names[id(column.parameter)] for name, column in self._columns.items()}
        self._sides = [cut(side.rows, block) for side in linearisation.sides]

    @property
    def device(self) -> torch.device:
        """Where vectors over the weights are: in the host's memory, where the change is."""
        return self._at.correction.device

    @property
    def restoring(self) -> int:
        """How many rows G_A has."""
        return sum(map(total, self._sides[:-1]))

    def gram(self) -> Tensor:
        """Return W Wᵀ, float64 [n, n], on the CPU.

        Raises:
            NonFiniteError: A gradient is NaN or infinite; the message names the parameter.
            ParameterError: A large parameter is used in a way that no rule knows; the message names it.
        """
        counted = set(self._named.values())
        layers = LayerGradients(self._model, only=counted.__contains__)
        blocks = [rows for side in self._sides for rows in side]
        gram = self._by_layers(layers) if world() == 1 and len(blocks) >= _MANY_BLOCKS else None
        if gram is None:
            gram = self._by_pairs(layers)
        weight = _weights(blocks)
        return gram * weight * weight.unsqueeze(1)

    def _by_layers(self, layers: LayerGradients) -> Tensor | None:
        """One sweep down the model, where two rows show that it can be taken apart."""
        try:
            if self._comes_apart(layers):
                return layered_gram(layers, [(side, self._point(i)) for i, side in enumerate(self._sides)])
        except NotLayeredError as fault:  # rows that two did not stand for, such as those an expert takes
            logger.info("%s is taken whole, not layer by layer: %r", type(self._model).__name__, fault)
        return None

    def _comes_apart(self, layers: LayerGradients) -> bool:
        few = {name: value[:2] for name, value in self._sides[0][0].items()}
        point = self._point(0)
        with point():
            expected = layers.gram(layers.capture(few))
        try:
            found = layered_gram(layers, [([few], point)])
        except (
            TypeError,
            KeyError,
            IndexError,
            AttributeError,
        ) as fault:  # a model of another build: anything may break
            logger.info("%s is taken whole, not layer by layer: %r", type(self._model).__name__, fault)
            return False
        return not layers.looped and float((found - expected).norm()) <= 1e-2 * float(expected.norm())

    def _by_pairs(self, layers: LayerGradients) -> Tensor:
        """All layers of two blocks at a time; blocks are dealt to the ranks."""
        blocks = [rows for side in self._sides for rows in side]
        ends = _ends(blocks)
        spans = [slice(*pair) for pair in pairwise(ends)]
        firsts = [0, *accumulate(map(len, self._sides))]  # the first block of each side
        gram = torch.zeros(ends[-1], ends[-1], dtype=torch.float64)
        for own in range(len(self._sides)):
            for i in counted("blocks of gradients", range(firsts[own], firsts[own + 1])):
                if not mine(i):
                    continue
                with self._point(own)():
                    held = layers.capture(blocks[i])
                    gram[spans[i], spans[i]] = layers.gram(held)
                    for j in range(firsts[own], i):
                        gram[spans[i], spans[j]] = layers.gram(held, layers.capture(blocks[j]))
                for later in range(own + 1, len(self._sides)):
                    others = range(firsts[later], firsts[later + 1])
                    if others:
                        with self._point(later)():
                            for j in others:
                                gram[spans[j], spans[i]] = layers.gram(held, layers.capture(blocks[j])).T
        lower = summed(gram).tril()
        return lower + lower.tril(-1).T

    def along(self, direction: Directions, *, protect: bool = False) -> Tensor:
        """Return G_A v, or G_B v, float64, on the CPU, for v [N] float32; of several v, each side takes its own.

        Raises:
            NonFiniteError: A derivative is NaN or infinite.
        """
        chosen = [len(self._sides) - 1] if protect else range(len(self._sides) - 1)
        directions = [direction] * len(chosen) if isinstance(direction, Tensor) else direction
        blocks = [rows for side in chosen for rows in self._sides[side]]
        result = torch.zeros(total(blocks), dtype=torch.float64)
        number = start = 0
        for side, one in zip(chosen, directions, strict=True):
            tangents = {
                self._named[name]: _tangent(one[column.span], column.parameter)
                for name, column in self._columns.items()
            }
            with self._point(side)(), as_in_backward(self._model):
                for rows in counted("derivatives", self._sides[side], size=count):
                    end = start + count(rows)
                    if mine(number):
                        _, derivative = completion_derivative(self._model, tangents, rows)
                        result[start:end] = derivative.double().cpu()
                    number, start = number + 1, end
        if not bool(summed(result).isfinite().all()):
            raise NonFiniteError(
                "the derivative of log π along the change",
                expected="finite numbers",
                found=f"NaN or Inf in {int((~result.isfinite()).sum())} of {result.numel()} rows",
                fix="Look for NaN or Inf in the weights, and for activations beyond the range of their dtype.",
            )
        return result * _weights(blocks)

    def combined(self, weights: Tensor) -> Tensor:
        """Return Wᵀ y for y float64 [..., n], float32 [..., N], where the change is held: a pass for each y.

        Raises:
            NonFiniteError: A gradient is NaN or infinite; the message names the tensor.
        """
        if weights.dim() > 1:
            return torch.stack([self.combined(one) for one in weights])
        result = torch.zeros(self._at.correction.numel(), device=next(self._model.parameters()).device)
        for i, (blocks, y) in enumerate(
            zip(self._sides, torch.split(weights, list(map(total, self._sides))), strict=True)
        ):
            if not bool(y.any()):
                continue
            ends = _ends(blocks)
            own = [(rows, y[ends[j] : ends[j + 1]].to(result.device)) for j, rows in enumerate(blocks) if mine(j)]
            with self._point(i)():
                add_weighted_gradient_(result, self._model, self._columns, own)
        return summed(result).to(self.device)

    def _point(self, side: int) -> partial[AbstractContextManager[None]]:
        return partial(self._at.at, self._at.sides[side])


def _tangent(direction: Tensor, parameter: nn.Parameter) -> Tensor:
    """Part of a direction beside its parameter; in float16, where small changes vanish, it is left in float32."""
    dtype = torch.float32 if parameter.dtype == torch.float16 else parameter.dtype
    return direction.view(parameter.shape).to(parameter.device, dtype)


def _ends(blocks: Sequence[Rows]) -> list[int]:
    """Return where each block's rows start, and where the last one's end."""
    return [total(blocks[:i]) for i in range(len(blocks) + 1)]


def _weights(blocks: Sequence[Rows]) -> Tensor:
    return torch.cat([rows["weight"].cpu() for rows in blocks]) if blocks else torch.zeros(0, dtype=torch.float64)
