"""The form that scales: W = [G_A; G_B] by passes of the model, without a gradient being stored.

W Wᵀ comes from the layers' inputs and output gradients, a layer at a time (`layered_gram`) or by pairs of blocks, G_A v
from forward-mode passes, and Wᵀ y from one weighted backward pass. Beyond the model it holds vectors over the weights,
one of them on the model's device, and the activations of a few blocks of rows.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from rlforget.errors import NonFiniteError
from rlforget.interference.forward_mode import completion_derivative
from rlforget.interference.gram import LayerGradients
from rlforget.interference.layer_chain import NotLayeredError
from rlforget.interference.layered import layered_gram
from rlforget.interference.linearisation import Linearisation
from rlforget.interference.ranks import mine, summed, world
from rlforget.interference.rows import Rows, cut, total
from rlforget.interference.weighted_gradient import add_weighted_gradient_

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
        self._restore, self._protect = (cut(rows, block) for rows in (linearisation.restore, linearisation.protect))

    @property
    def device(self) -> torch.device:
        """Where vectors over the weights are: in the host's memory, where the change is."""
        return self._at.change.device

    @property
    def restoring(self) -> int:
        """How many rows G_A has."""
        return self._at.restoring

    def gram(self) -> Tensor:
        """Return W Wᵀ, float64 [n, n], on the CPU.

        Raises:
            NonFiniteError: A gradient is NaN or infinite; the message names the parameter.
            ParameterError: A large parameter is used in a way that no rule knows; the message names it.
        """
        counted = set(self._named.values())
        layers = LayerGradients(self._model, only=counted.__contains__)
        blocks = [*self._restore, *self._protect]
        gram = self._by_layers(layers) if world() == 1 and len(blocks) >= _MANY_BLOCKS else None
        if gram is None:
            gram = self._by_pairs(layers)
        weight = _weights(blocks)
        return gram * weight * weight.unsqueeze(1)

    def _by_layers(self, layers: LayerGradients) -> Tensor | None:
        """One sweep down the model, where two rows show that it can be taken apart."""
        try:
            if self._comes_apart(layers):
                return layered_gram(layers, [(self._restore, self._at.midpoint), (self._protect, self._at.present)])
        except NotLayeredError as fault:  # rows that two did not stand for, such as those an expert takes
            logger.info("%s is taken whole, not layer by layer: %r", type(self._model).__name__, fault)
        return None

    def _comes_apart(self, layers: LayerGradients) -> bool:
        few = {name: value[:2] for name, value in self._restore[0].items()}
        with self._at.midpoint():
            expected = layers.gram(layers.capture(few))
        try:
            found = layered_gram(layers, [([few], self._at.midpoint)])
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
        blocks = [*self._restore, *self._protect]
        first = len(self._restore)  # of G_B's
        ends = _ends(blocks)
        gram = torch.zeros(ends[-1], ends[-1], dtype=torch.float64)
        for i, rows in enumerate(blocks):
            if not mine(i):
                continue
            here = slice(ends[i], ends[i + 1])
            with self._point(protect=i >= first):
                held = layers.capture(rows)
                gram[here, here] = layers.gram(held)
                for j in range(first if i >= first else 0, i):
                    gram[here, ends[j] : ends[j + 1]] = layers.gram(held, layers.capture(blocks[j]))
            if i < first < len(blocks):
                with self._point(protect=True):
                    for j in range(first, len(blocks)):
                        there = slice(ends[j], ends[j + 1])
                        gram[there, here] = layers.gram(held, layers.capture(blocks[j])).T
        lower = summed(gram).tril()
        return lower + lower.tril(-1).T

    def along(self, direction: Tensor, *, protect: bool = False) -> Tensor:
        """Return G_A v, or G_B v, float64, on the CPU, for v [N] float32.

        Raises:
            NonFiniteError: A derivative is NaN or infinite.
        """
        blocks = self._protect if protect else self._restore
        ends = _ends(blocks)
        result = torch.zeros(ends[-1], dtype=torch.float64)
        tangents = {
            self._named[name]: _tangent(direction[column.span], column.parameter)
            for name, column in self._columns.items()
        }
        with self._point(protect=protect):
            for i, rows in enumerate(blocks):
                if mine(i):
                    _, derivative = completion_derivative(self._model, tangents, rows)
                    result[ends[i] : ends[i + 1]] = derivative.double().cpu()
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
        result = torch.zeros(self._at.change.numel(), device=next(self._model.parameters()).device)
        sides = (self._restore, weights[: self.restoring]), (self._protect, weights[self.restoring :])
        for protect, (blocks, y) in enumerate(sides):
            if not bool(y.any()):
                continue
            ends = _ends(blocks)
            own = [(rows, y[ends[i] : ends[i + 1]].to(result.device)) for i, rows in enumerate(blocks) if mine(i)]
            with self._point(protect=bool(protect)):
                add_weighted_gradient_(result, self._model, self._columns, own)
        return summed(result).to(self.device)

    def _point(self, *, protect: bool) -> AbstractContextManager[None]:
        return self._at.present() if protect else self._at.midpoint()


def _tangent(direction: Tensor, parameter: nn.Parameter) -> Tensor:
    """Part of a direction beside its parameter; in float16, where small changes vanish, it is left in float32."""
    dtype = torch.float32 if parameter.dtype == torch.float16 else parameter.dtype
    return direction.view(parameter.shape).to(parameter.device, dtype)


def _ends(blocks: Sequence[Rows]) -> list[int]:
    """Return where each block's rows start, and where the last one's end."""
    return [total(blocks[:i]) for i in range(len(blocks) + 1)]


def _weights(blocks: Sequence[Rows]) -> Tensor:
    return torch.cat([rows["weight"].cpu() for rows in blocks]) if blocks else torch.zeros(0, dtype=torch.float64)
