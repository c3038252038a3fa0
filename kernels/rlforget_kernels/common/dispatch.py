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


def operator(fake: Callable[P, R], mutates: tuple[str, ...] = ()) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Register the decorated function as the custom operator `rlforget::<its name>`.

    Args:
        fake: The same signature on tensors without data: says which shapes and dtypes come out.
        mutates: Names of the arguments that are written in place.

    Returns:
        A plain function, with the signature and docstring of the decorated one, that calls the operator.
    """

    def register(function: Callable[P, R]) -> Callable[P, R]:
        definition: Any = torch.library.custom_op(f"rlforget::{function.__name__}", function, mutates_args=mutates)
        definition.register_fake(fake)

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            result: R = definition(*args, **kwargs)
            return result

        return call

    return register


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
