"""A transformer taken apart into its layers: what each is given, one of them run again, all of them passed over."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class NotLayeredError(Exception):
    """The model is not a chain of layers that this can take apart."""


class Call:
    """What a layer was given and gave."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        self._by_name = not args
        hidden = kwargs.get("hidden_states") if self._by_name else args[0]
        first = output[0] if isinstance(output, tuple) else output
        if not isinstance(hidden, Tensor) or not isinstance(first, Tensor) or hidden.shape != first.shape:
            raise NotLayeredError
        self._args, self._kwargs = args[1:], {k: v for k, v in kwargs.items() if k != "hidden_states"}
        self._rest = output[1:] if isinstance(output, tuple) else None
        self.hidden = hidden.cpu()

    def again(self, layer: nn.Module, hidden: Tensor) -> Tensor:
        """Run the layer on another hidden state."""
        kwargs = {**self._kwargs, "hidden_states": hidden} if self._by_name else self._kwargs
        output = layer(*(() if self._by_name else (hidden,)), *self._args, **kwargs)
        result: Tensor = output[0] if isinstance(output, tuple) else output
        return result

    def like(self, hidden: Tensor) -> Any:
        """Return an output of the layer's kind."""
        return hidden if self._rest is None else (hidden, *self._rest)


def chain_of(model: nn.Module) -> list[nn.Module]:
    """Find the longest list of modules: the transformer's layers.

    Raises:
        NotLayeredError: There is none.
    """
    lists = [list(module) for module in model.modules() if isinstance(module, nn.ModuleList) and len(module)]
    if not lists:
        raise NotLayeredError
    return max(lists, key=len)


def run_noting(chain: Sequence[nn.Module], run: Callable[[], object]) -> tuple[list[Call], Tensor]:
    """Run a model once, noting what each of its layers is given, in the host's memory.

    Returns:
        The layers' calls, and the last one's output, in the host's memory.

    Raises:
        NotLayeredError: They are not called one after the other, each with what the one before gave.
    """
    calls: list[Call] = []
    given: list[Tensor] = []

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        call = Call(args, kwargs, output)
        hidden = args[0] if args else kwargs["hidden_states"]
        follows = not given or given[-1] is hidden or torch.equal(given[-1], hidden)
        if len(calls) >= len(chain) or chain[len(calls)] is not module or not follows:
            raise NotLayeredError
        calls.append(call)
        given[:] = [output[0] if isinstance(output, tuple) else output]

    with ExitStack() as hooks:
        for layer in chain:
            hooks.callback(layer.register_forward_hook(hook, with_kwargs=True).remove)
        run()
    if len(calls) != len(chain):
        raise NotLayeredError
    return calls, given[0].cpu()


class Reached(Exception):
    """The first layer was reached."""


@contextmanager
def stopped(layer: nn.Module) -> Iterator[list[Tensor]]:
    """Stop at a layer, with what it is given."""
    reached: list[Tensor] = []

    def stop(*args: Any, **kwargs: Any) -> None:
        reached.append(args[0] if args else kwargs["hidden_states"])
        raise Reached

    with _forwards([layer], lambda _: stop):
        yield reached


@contextmanager
def skipped(chain: Sequence[nn.Module], calls: Sequence[Call], end: Tensor) -> Iterator[None]:
    """Let every layer pass on what it is given, and the last one give `end`."""

    def passing(position: int) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            given = args[0] if args else kwargs["hidden_states"]
            return calls[position].like(end if position == len(chain) - 1 else given)

        return forward

    with _forwards(chain, passing):
        yield


@contextmanager
def _forwards(modules: Sequence[nn.Module], to: Callable[[int], Callable[..., Any]]) -> Iterator[None]:
    """Exchange the modules' forward inside the block."""
    kept = [module.__dict__.get("forward") for module in modules]
    try:
        for position, module in enumerate(modules):
            module.forward = to(position)
        yield
    finally:
        for module, forward in zip(modules, kept, strict=True):
            if forward is None:
                del module.forward
            else:
                module.forward = forward
