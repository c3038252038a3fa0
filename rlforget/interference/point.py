"""Points on the way from before to after: the model's weights moved there in place, and put back to the bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor, nn

from rlforget.delta.sharded import check_alike
from rlforget.errors import ConfigError, LayoutError, ParameterError, WrongBaseError
from rlforget.weights import open_weights, pair_up
from rlforget.weights.sharding import here, settle, together
from rlforget_kernels.common.arithmetic import widened
from rlforget_kernels.common.bits import as_bits

if TYPE_CHECKING:
    from rlforget.delta import Delta
    from rlforget.weights import Weights

Frozen = Literal["error", "skip"]
"""What becomes of a changed tensor that is frozen (`requires_grad` is False) or quantised: refused, or left out."""


def names_in(weights: Weights, delta: Delta) -> dict[str, str]:
    """Return the name that each tensor of `delta` goes by in `weights`, which are at its after side.

    Tensors that the delta adds, resizes or retypes must be there as it leaves them, and are left out: there is nothing
    in them to put back.

    Raises:
        LayoutError: The delta is of another architecture, or of a model that ties what these weights keep apart.
    """
    check_alike(weights, delta)
    names: dict[str, str] = {}
    called_before = {new: old for old, new in delta.renamed.items()}
    for pair in pair_up(delta.layout_after, weights):
        name = called_before.get(pair.before, pair.before)
        if name in delta.whole:
            continue
        known = names.setdefault(name, pair.after)
        if known != pair.after:
            raise LayoutError(
                f"{weights.description}, tensor {pair.after!r}",
                expected=f"to be tied to {known!r}, as in the delta",
                found="a tensor of its own",
                fix="Tie the two, or make the delta from weights that keep them apart.",
            )
    return names


def changed_parameters(model: nn.Module, delta: Delta, *, shards: bool = False) -> dict[str, nn.Parameter]:
    """Return the floating-point parameters that `delta` changed, by the delta's names and in its order.

    A tied parameter that the delta holds under several names comes under the first.

    Raises:
        LayoutError: The delta is of another architecture.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    names = names_in(open_weights(model, shards=shards), delta)
    found: dict[int, tuple[str, nn.Parameter]] = {}
    for name in delta:
        parameter = parameters.get(names[name])
        if delta.counts[name] and parameter is not None and parameter.is_floating_point():
            found.setdefault(id(parameter), (name, parameter))
    return dict(found.values())


def measured_parameters(
    model: nn.Module, delta: Delta, *, frozen: Frozen = "error", shards: bool = False
) -> tuple[dict[str, nn.Parameter], tuple[str, ...]]:
    """Return those of `changed_parameters` that a measurement differentiates by, and the names of what it leaves out.

    Frozen parameters (`requires_grad` is False) and quantised tensors (integers or 8-bit floats, whose scales stand
    elsewhere) are left out where `frozen` is "skip". Floating-point buffers take no gradient, and are no fault.

    Raises:
        ConfigError: `frozen` is neither "error" nor "skip".
        LayoutError: The delta is of another architecture, or all it changes is the dtype or shape of tensors.
        ParameterError: `frozen` is "error", and the delta changed a tensor that is frozen or quantised.
    """
    if frozen not in get_args(Frozen):
        found = repr(frozen)
        raise ConfigError("frozen", expected='"error" or "skip"', found=found, fix="Check the spelling.")
    retyped = [name for name, tensor in delta.whole.items() if tensor.meta_before and tensor.meta_after]
    if retyped and not delta.changed:
        raise LayoutError(
            f"the delta, tensor {retyped[0]!r}",
            expected="tensors that keep shape and dtype, whose coordinates can be put back",
            found="nothing but changes of dtype or shape, as between checkpoints of two precisions",
            fix="Compare checkpoints of one dtype, or load both sides in it.",
        )
    parameters = changed_parameters(model, delta, shards=shards)
    fixed = {name: "a frozen parameter" for name, parameter in parameters.items() if not parameter.requires_grad}
    for name, tensor in delta.items():
        if delta.counts[name] and (not tensor.dtype.is_floating_point or tensor.dtype.itemsize == 1):
            fixed[name] = f"a quantised tensor, in {tensor.dtype}"
    if fixed and frozen == "error":
        name, found = next(iter(fixed.items()))
        more = f" ({len(fixed)} such in all)" if len(fixed) > 1 else ""
        raise ParameterError(
            f"{type(model).__name__}, tensor {name!r}",
            expected="a floating-point parameter that requires a gradient, since the delta changed it",
            found=found + more,
            fix='Free it with requires_grad_(True), load the model unquantised, or leave such out with frozen="skip".',
        )
    return {name: parameter for name, parameter in parameters.items() if name not in fixed}, tuple(fixed)


def change_of(model: nn.Module, delta: Delta, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Return δ as a direction in weight space: by the model's own names, dense, 0 where nothing changed.

    Args:
        model: The model.
        delta: The delta.
        parameters: Those to move, by the delta's names, as `changed_parameters` gives them.

    Returns:
        after − before, subtracted in float32 and rounded to the parameter's dtype, on its device, of its shape.
    """
    own = {id(parameter): name for name, parameter in model.named_parameters()}
    direction = {}
    for name, parameter in parameters.items():
        flat = torch.zeros(parameter.numel(), dtype=parameter.dtype, device=parameter.device)
        tensor = delta[name]
        flat[tensor.indices.to(flat.device).long()] = tensor.values.to(flat.device, flat.dtype)
        direction[own[id(parameter)]] = flat.view(parameter.shape)
    return direction


def check_at_after(weights: Weights, delta: Delta) -> None:
    """Hold that `weights` carry the delta's after bits at each of its coordinates.

    Raises:
        LayoutError: The delta is of another architecture.
        WrongBaseError: A bit differs.
    """
    names = names_in(weights, delta)

    def check() -> None:
        for name, target in names.items():
            tensor = delta[name]
            held = as_bits(weights.tensor(target))
            held = held.index_select(0, delta.places(name).to(held.device)).cpu()
            wrong = int((held != tensor.after_bits).sum())
            if wrong:
                raise WrongBaseError(
                    f"{weights.description}, tensor {target!r}",
                    expected=f"the delta's new bits at {tensor.changed} coordinates",
                    found=f"other bits at {wrong} of them",
                    fix="Take the weights that the delta leads to: apply the delta, or undo what was rolled back "
                    "already.",
                )

    together(check, weights.sharding)


@contextmanager
def moved(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], to: Callable[[str, Tensor], Tensor]
) -> Iterator[None]:
    """Hold `parameters` at other values inside the block, and put the old bits back whatever happens.

    Args:
        model: The model that they are of.
        parameters: The parameters to move; of shards what is here. A full copy of them is kept meanwhile.
        to: Gives the new value from a parameter's name and its present value (which it must not write to).
    """
    saved: dict[str, Tensor] = {}
    try:
        settle(model)
        with torch.no_grad():
            for name, parameter in parameters.items():
                saved[name] = here(parameter).clone()
                here(parameter).copy_(to(name, saved[name]))
        yield
    finally:
        settle(model)
        with torch.no_grad():
            for name, old in saved.items():
                here(parameters[name]).copy_(old)


def toward_before(delta: Delta, share: float) -> Callable[[str, Tensor], Tensor]:
    """Return the point `share` of the way back from after to before, for `moved`.

    At share 1 the coordinates get their before bits exactly; otherwise after − share·δ in float32, rounded to the
    stored dtype.
    """

    def value(name: str, now: Tensor) -> Tensor:
        tensor = delta[name]
        before = tensor.before.to(now.device)
        if share != 1.0:
            before = (widened(tensor.after) - share * tensor.values).to(now.device, now.dtype)
        flat = now.clone().flatten()
        flat[delta.places(name).to(now.device)] = before
        return flat.view(now.shape)

    return value
