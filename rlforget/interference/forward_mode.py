"""Directional derivatives: how the outputs move along a change of the weights, from one forward pass.

Forward-mode differentiation carries a tangent beside every value, so that Jδ (J the Jacobian of all the log
probabilities) comes out of a single pass that stores nothing for a backward one. Fused kernels have no tangents: while
it runs, attention is computed in plain matrix products, and so are experts. A model with an operation that has no
forward mode at all is differentiated backward twice instead, to the same result: with g(w) = Jᵀw, linear in w, the
derivative of ⟨g(w), δ⟩ by w is Jδ.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from rlforget.errors import LayoutError
from rlforget.interference.completions import completion_log_probs, next_token_log_probs
from rlforget.interference.sample_gradients import measuring

logger = logging.getLogger(__name__)

Batch = Mapping[str, Tensor]
Function = Callable[[nn.Module, Batch], Tensor]

_HALF_LARGEST = 2.0**-4  # of a direction in float16: its tangents stay clear of 65504 and of the subnormal numbers
_NO_FORWARD_MODE = ("forward AD", "functorch")  # what torch says of an operation or a custom Function without one


def directional_derivative(model: nn.Module, direction: Mapping[str, Tensor], batch: Batch) -> tuple[Tensor, Tensor]:
    """Differentiate the next-token log-probabilities along a direction in weight space.

    Deterministic, in evaluation mode; nothing about the model is changed, and no graph is kept.

    Args:
        model: A transformers causal language model.
        direction: By the model's own parameter names, tensors of the parameters' shapes, of any floating dtype, which
            are rounded to the parameters' dtype. A parameter that is left out does not move; a tied one goes under
            either of its names, once.
        batch: `input_ids`, `attention_mask` [B, T], padded on either side.

    Returns:
        log π(token | what stands before it), [B, T - 1, vocabulary], and its derivative, of the same shape, at each
        position but the last; float32 (float64 for a float64 model). In a half-precision model the derivative carries
        that precision's rounding. Neither is checked: an overflow leaves Inf or NaN in them.

    Raises:
        LayoutError: A name that is no floating-point parameter, a shape that is not the parameter's, a tied parameter
            under two names, or a model with an operation that cannot be differentiated so.
    """
    return derivative_of(next_token_log_probs, model, direction, batch)


def completion_derivative(model: nn.Module, direction: Mapping[str, Tensor], batch: Batch) -> tuple[Tensor, Tensor]:
    """Differentiate log π(completion | prompt): `directional_derivative`, summed over the scored tokens.

    Returns:
        log π [B] and its derivative [B], one row of G_A δ a completion before any weighting.
    """
    return derivative_of(completion_log_probs, model, direction, batch)


def derivative_of(
    function: Function, model: nn.Module, direction: Mapping[str, Tensor], batch: Batch
) -> tuple[Tensor, Tensor]:
    """Differentiate `function(model, batch)`, a floating-point tensor, along `direction`: its value and its tangent.

    The arguments are those of `directional_derivative`.
    """
    parameters, tangents, scale = _duals(model, direction)
    scored = _Scored(model, function)

    def value(moving: dict[str, Tensor]) -> Tensor:
        result: Tensor = functional_call(scored, moving, (batch,))
        return result

    with measuring(model), _without_fused_kernels(model):
        if not parameters:
            with torch.no_grad():
                result = function(model, batch)
            return result, torch.zeros_like(result)
        try:
            with torch.no_grad():
                result, tangent, *_ = jvp(value, (parameters,), (tangents,))
        except RuntimeError as fault:
            if not any(said in str(fault) for said in _NO_FORWARD_MODE):
                raise
            logger.info("%s has no forward mode (%s): differentiated backward twice", type(model).__name__, fault)
            try:
                result, tangent = _backward_twice(value, parameters, tangents)
            except RuntimeError as second:
                raise LayoutError(
                    type(model).__name__,
                    expected="operations with a forward mode, or that can be differentiated twice",
                    found=str(second),
                    fix='Load the model with attn_implementation="eager", without fused kernels.',
                ) from fault
    return result, tangent / scale


class _Scored(nn.Module):
    """A function of a model as a module, so that `functional_call` can exchange the parameters."""

    def __init__(self, model: nn.Module, function: Function) -> None:
        super().__init__()
        self.model, self.function = model, function

    def forward(self, batch: Batch) -> Tensor:
        return self.function(self.model, batch)


def _duals(model: nn.Module, direction: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor], float]:
    """Return the parameters that move, by their names in `_Scored`, their tangents, and what those were multiplied by.

    In float16 the multiplication by a power of two keeps small changes from vanishing.
    """
    known = dict(model.named_parameters(remove_duplicate=False))
    fix = "Name the model's own parameters, and give each a tensor of its shape."
    seen: dict[int, str] = {}
    for name, tensor in direction.items():
        parameter = known.get(name)
        what = f"{type(model).__name__}, direction {name!r}"
        if parameter is None or not parameter.is_floating_point():
            found = "none of that name" if parameter is None else str(parameter.dtype)
            raise LayoutError(what, expected="a floating-point parameter", found=found, fix=fix)
        if tensor.shape != parameter.shape:
            raise LayoutError(what, expected=f"shape {list(parameter.shape)}", found=f"{list(tensor.shape)}", fix=fix)
        first = seen.setdefault(id(parameter), name)
        if first != name:
            raise LayoutError(what, expected="each parameter once", found=f"it tied to {first!r}", fix=fix)
    scale = 1.0
    if any(known[name].dtype == torch.float16 for name in direction):
        largest = max(float(tensor.abs().max()) for tensor in direction.values() if tensor.numel())
        if 0.0 < largest < float("inf"):
            scale = 2.0 ** round(torch.tensor(_HALF_LARGEST / largest).log2().item())
    parameters = {f"model.{name}": known[name].detach() for name in direction}
    tangents = {}
    for name, tensor in direction.items():
        like = known[name]
        scaled = tensor.to(like.device)
        tangents[f"model.{name}"] = (scaled if scale == 1.0 else scaled.float() * scale).to(like.dtype)
    return parameters, tangents, scale


def _backward_twice(
    value: Callable[[dict[str, Tensor]], Tensor], parameters: dict[str, Tensor], tangents: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        leaves = {name: parameter.clone().requires_grad_() for name, parameter in parameters.items()}
        result = value(leaves)
        weights = torch.zeros_like(result, requires_grad=True)
        pulled = torch.autograd.grad(result, list(leaves.values()), weights, create_graph=True, allow_unused=True)
        moved = [
            (gradient * tangents[name]).sum()
            for name, gradient in zip(leaves, pulled, strict=True)
            if gradient is not None
        ]
        if not moved:
            return result.detach(), torch.zeros_like(result)
        (tangent,) = torch.autograd.grad(torch.stack(moved).sum(), weights)
    return result.detach(), tangent.detach()


@contextmanager
def _without_fused_kernels(model: Any) -> Iterator[None]:
    """Hold attention and experts in plain products inside the block; the configuration is as found afterwards."""
    config = getattr(model, "config", None)
    with ExitStack() as back:
        back.enter_context(sdpa_kernel(SDPBackend.MATH))
        for kind, plain in (("attn", ("eager", "sdpa")), ("experts", ("eager",))):
            now = getattr(config, f"_{kind}_implementation", None)
            switch = getattr(model, f"set_{kind}_implementation", None)
            able = getattr(model, f"_can_set_{kind}_implementation", None)
            if now is not None and now not in plain and switch is not None and able is not None and able():
                switch("eager")
                back.callback(switch, now)
        yield
