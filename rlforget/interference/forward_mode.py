"""Directional derivatives: how the outputs move along a change of the weights, from one forward pass.

Forward-mode differentiation carries a tangent beside every value, so that Jδ (J the Jacobian of all the log
probabilities) comes out of a single pass that stores nothing for a backward one. Fused kernels have no tangents: while
it runs, attention is computed in plain matrix products, and so are experts. A model with an operation that has no
forward mode at all is differentiated backward twice instead, to the same result: with g(w) = Jᵀw, linear in w, the
derivative of ⟨g(w), δ⟩ by w is Jδ.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from rlforget.errors import LayoutError
from rlforget.interference.completions import completion_log_probs, next_token_log_probs
from rlforget.interference.sample_gradients import measuring

logger = logging.getLogger(__name__)

Batch = Mapping[str, Tensor]
Function = Callable[[nn.Module, Batch], Tensor]
Tensors = dict[str, Tensor]
InParameters = Callable[[Tensors], Tensor]

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


@contextmanager
def as_in_backward(model: nn.Module) -> Iterator[None]:
    """Let the rows of padding tokens not move inside the block: a backward pass gives them no gradient.

    A derivative says what the model does when they move with all else, as it would. Beside rows of gradients, which
    know nothing of them, it would tell of damage that no row can undo.
    """

    def still(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        padding = args[0] == module.padding_idx
        return torch.where(padding.unsqueeze(-1), output.detach(), output)

    with ExitStack() as hooks:
        for module in model.modules():
            if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                hooks.callback(module.register_forward_hook(still).remove)
        yield


def derivative_of(
    function: Function, model: nn.Module, direction: Mapping[str, Tensor], batch: Batch
) -> tuple[Tensor, Tensor]:
    """Differentiate `function(model, batch)`, a floating-point tensor, along `direction`: its value and its tangent.

    The arguments are those of `directional_derivative`.
    """
    parameters, tangents, scale = _duals(model, direction)
    value = _in_parameters(function, model, batch)
    with measuring(model), _without_fused_kernels(model):
        if not parameters:
            with torch.no_grad():
                result = function(model, batch)
            return result, torch.zeros_like(result)
        result, tangent = _first_that_works(
            model,
            lambda: _forward(value, parameters, tangents),
            lambda: _backward_twice(value, _leaves(parameters), tangents),
        )
    return result.detach(), tangent.detach() / scale


def second_derivative_of(
    function: Function, model: nn.Module, one: Mapping[str, Tensor], other: Mapping[str, Tensor], batch: Batch
) -> Tensor:
    """Differentiate `function(model, batch)` along two directions, one after the other: uᵀ ∇² v of each entry.

    Forward over forward: like the first derivative it stores nothing, and gives every sample's own figure, where
    forward over backward gives their sum alone. Layer norms are written out meanwhile, because torch's own rule for
    them, differentiated again, is wrong (pytorch issue 196700). The arguments are those of `directional_derivative`.
    """
    parameters, outer, scale = _duals(model, one)
    also, inner, second_scale = _duals(model, other)
    value = _in_parameters(function, model, batch)
    with measuring(model), _without_fused_kernels(model), _PlainNorms():
        if not outer or not inner:
            with torch.no_grad():
                return torch.zeros_like(function(model, batch))
        both = parameters | also  # one pass differentiates by what the other moves too
        zeros = {name: torch.zeros_like(parameter) for name, parameter in both.items()}
        _, result = _first_that_works(
            model,
            lambda: _forward(lambda moving: _forward(value, moving, zeros | inner)[1], both, zeros | outer),
            lambda: _backward_twice(lambda moving: _backward_twice(value, moving, inner)[1], _leaves(both), outer),
        )
    return result.detach() / (scale * second_scale)


def _first_that_works(
    model: nn.Module, forward: Callable[[], tuple[Tensor, Tensor]], backward: Callable[[], tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    try:
        with torch.no_grad():
            return forward()
    except RuntimeError as fault:
        if not any(said in str(fault) for said in _NO_FORWARD_MODE):
            raise
        logger.info("%s has no forward mode (%s): differentiated backward twice", type(model).__name__, fault)
        try:
            return backward()
        except RuntimeError as second:
            raise LayoutError(
                type(model).__name__,
                expected="operations with a forward mode, or that can be differentiated twice",
                found=str(second),
                fix='Load the model with attn_implementation="eager", without fused kernels.',
            ) from fault


def _in_parameters(function: Function, model: nn.Module, batch: Batch) -> InParameters:
    scored = _Scored(model, function)

    def value(moving: Tensors) -> Tensor:
        result: Tensor = functional_call(scored, moving, (batch,))
        return result

    return value


class _Scored(nn.Module):
    """A function of a model as a module, so that `functional_call` can exchange the parameters."""

    def __init__(self, model: nn.Module, function: Function) -> None:
        super().__init__()
        self.model, self.function = model, function

    def forward(self, batch: Batch) -> Tensor:
        return self.function(self.model, batch)


class _PlainNorms(TorchFunctionMode):
    """Writes layer norms out in operations whose derivatives can be differentiated."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is nn.functional.layer_norm:
            return _layer_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    over = tuple(range(-len(normalized_shape), 0))
    wide = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
    centred = wide - wide.mean(over, keepdim=True)
    result = (centred * torch.rsqrt(centred.square().mean(over, keepdim=True) + eps)).to(input.dtype)
    result = result if weight is None else result * weight
    return result if bias is None else result + bias


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


def _leaves(parameters: Tensors) -> Tensors:
    return {name: parameter.clone().requires_grad_() for name, parameter in parameters.items()}


def _forward(value: InParameters, parameters: Tensors, tangents: Tensors) -> tuple[Tensor, Tensor]:
    result, tangent, *_ = jvp(value, (parameters,), (tangents,))
    return result, tangent


def _backward_twice(value: InParameters, parameters: Tensors, tangents: Tensors) -> tuple[Tensor, Tensor]:
    """Differentiate along `tangents` by the parameters that have one; itself differentiable."""
    with torch.enable_grad():
        moving = [parameters[name] for name in tangents]
        result = value(parameters)
        weights = torch.zeros_like(result, requires_grad=True)
        pulled = torch.autograd.grad(result, moving, weights, create_graph=True, allow_unused=True)
        terms = [
            (gradient * tangent).sum()
            for gradient, tangent in zip(pulled, tangents.values(), strict=True)
            if gradient is not None
        ]
        if not terms:
            return result, torch.zeros_like(result)
        total = torch.stack(terms).sum()
        (tangent,) = torch.autograd.grad(total, weights, create_graph=True)
    return result, tangent


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
