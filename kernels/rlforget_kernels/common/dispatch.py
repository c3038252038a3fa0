"""Registration of an operator with torch, and the choice of its backend."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")

BACKENDS = {"cpu": "cpu", "cuda": "gpu"}
"""The module of an operator's package that serves a device type: `cpu` is numba, `gpu` is Triton."""

_LIBRARY = torch.library.Library("rlforget", "FRAGMENT")
_TAGS = (torch.Tag.pt2_compliant_tag,)


def operator(fake: Callable[P, R], mutates: tuple[str, ...] = ()) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Register the decorated function as the operator `rlforget::<its name>`.

    With the dispatcher itself, as `torch.library.custom_op` does, but that one imports torch._dynamo at the first call:
    a second of every process. Like there, the operator has no gradient: outputs of floats that depend on what requires
    one require it too, so that `backward` fails at them and does not pass them over.

    Args:
        fake: The same signature on tensors without data: says which shapes and dtypes come out.
        mutates: Names of the arguments that are written in place.

    Returns:
        A plain function, with the signature and docstring of the decorated one, that calls the operator.
    """

    def register(function: Callable[P, R]) -> Callable[P, R]:
        name = function.__name__
        _LIBRARY.define(name + torch.library.infer_schema(function, mutates_args=mutates), tags=_TAGS)
        _LIBRARY.impl(name, function, "CompositeExplicitAutograd")
        torch.library.register_fake(f"rlforget::{name}", fake, lib=_LIBRARY)
        overload = getattr(torch.ops.rlforget, name).default
        if mutates:
            places = [number for number, argument in enumerate(overload._schema.arguments) if argument.name in mutates]
            _LIBRARY.impl(name, _noting_writes(overload, places), "ADInplaceOrView", with_keyset=True)
        else:
            torch.library.register_autograd(f"rlforget::{name}", _no_gradient(name), lib=_LIBRARY)

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            result: R = overload(*args, **kwargs)
            return result

        return call

    return register


def _no_gradient(name: str) -> Callable[..., Any]:
    """Return the backward of an operator that has none."""

    def backward(context: Any, *gradients: Any) -> Any:
        raise RuntimeError(f"{name}: expected no backward through it; found one. Call it under torch.no_grad().")

    return backward


def _noting_writes(overload: Any, places: list[int]) -> Callable[..., Any]:
    """Return what raises the versions of the tensors that an operator writes to, by which autograd knows of a write."""

    def noting(keyset: Any, *args: Any, **kwargs: Any) -> Any:
        for place in places:
            written = args[place] if place < len(args) else kwargs[overload._schema.arguments[place].name]
            torch.autograd.graph.increment_version(written)
        with torch._C._AutoDispatchBelowADInplaceOrView():
            return overload.redispatch(keyset & torch._C._after_ADInplaceOrView_keyset, *args, **kwargs)

    return noting


def backend(package: str, *tensors: Tensor | None) -> ModuleType:
    """Import the backend of the operator `package` for the device that all `tensors` are on (None is left out).

    Raises:
        ValueError: if the tensors are on different devices.
        NotImplementedError: if there is no backend for their device.
    """
    devices = {tensor.device for tensor in tensors if tensor is not None}
    if len(devices) != 1:
        found = ", ".join(sorted(map(str, devices))) or "no tensor"
        raise ValueError(f"{package}: expected tensors on one device; found {found}. Move them to one device.")
    (device,) = devices
    if device.type not in BACKENDS:
        raise NotImplementedError(
            f"{package}: expected tensors on {' or '.join(BACKENDS)}; found {device}. Move them with .to('cpu')."
        )
    return importlib.import_module(f"{package}.{BACKENDS[device.type]}")


def size_of_data() -> Any:
    """Return, inside a fake, the symbol of a size that depends on the data."""
    return torch.library.get_ctx().new_dynamic_size()
