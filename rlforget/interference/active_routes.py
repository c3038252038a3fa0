"""Routes: the channels, heads and input directions that a domain's own rollouts really use.

A finding of 2606.02398 is that domains share a substantial part of their active computation, and that there the
directions of updates decide between synergy and conflict. How the paper measures a route is not known; the measures
here, the mean absolute activation of a channel and the top share in each layer, are a reconstruction, and the norms of
heads and the directions of inputs are this project's own.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rlforget.errors import ConfigError, LayoutError, NonFiniteError
from rlforget.interference.channels import Channels, channels_of, is_linear
from rlforget.interference.completions import Batches, collect, completed, next_token_log_probs
from rlforget.interference.directions import Directions, Sketch
from rlforget.interference.route import Parts, Route
from rlforget.interference.sample_gradients import measuring

_ROWS_AT_ONCE = 16  # completions of one forward pass
_EXACT_WIDTH = 256  # inputs up to this wide are followed without loss
_SKETCHED = 64  # directions that are followed of wider ones, at least


@dataclass(frozen=True)
class Routes:
    """How much a domain's rollouts use each part of a model.

    Every position of prompt and completion counts alike, padding apart.

    Attributes:
        channels: For each MLP, the mean absolute activation of its channels (the inputs of the projection out of them),
            float64 [channels].
        heads: For each attention, the mean Euclidean norm of each head's output (its part of the output projection's
            input), float64 [heads].
        inputs: For each linear layer, the principal directions of its inputs.
        samples: How many rollouts went in.
        tokens: How many positions.
        parts: Which weights are whose.
    """

    channels: dict[str, Tensor]
    heads: dict[str, Tensor]
    inputs: dict[str, Directions]
    samples: int
    tokens: int
    parts: Parts

    def top(self, share: float = 0.1) -> Route:
        """Return the most active `share` of the channels of each MLP, and of the heads of each layer; one at least.

        Ties go to the first.

        Raises:
            ConfigError: `share` is not above 0 and at most 1.
        """
        if not 0 < share <= 1:
            raise ConfigError("top", expected="a share in (0, 1]", found=repr(share), fix="Write 10% as 0.1.")
        channels = {name: _top(values, share) for name, values in self.channels.items()}
        return Route(channels, {name: _top(values, share) for name, values in self.heads.items()}, self.parts)

    def shared(self, other: Routes, *, top: float = 0.1) -> Route:
        """Return what is among the most active parts of both.

        Raises:
            ConfigError: `top` is not above 0 and at most 1.
            LayoutError: The other's are routes in another model.
        """
        return self.top(top) & other.top(top)


def _top(values: Tensor, share: float) -> Tensor:
    chosen = torch.zeros(values.shape, dtype=torch.bool)
    chosen[values.sort(descending=True, stable=True).indices[: max(1, round(share * values.numel()))]] = True
    return chosen


def routes(
    model: nn.Module,
    batches: Batches,
    *,
    samples: int = 256,
    seed: int = 0,
    tokenizer: Any = None,
    directions: int = 8,
) -> Routes:
    """Measure the routes of a domain: one forward pass over its own rollouts, with hooks.

    Args:
        model: A transformers causal language model whose MLPs are linear layers. It is left as it was found.
        batches: A domain, its name, or batches (see `Batches`); completions are sampled from the model unless `labels`
            give them.
        samples: How many rollouts to take.
        seed: Seed of prompts and completions.
        tokenizer: Encodes a domain's prompts; by default the one in the model's folder.
        directions: How many principal directions of a linear layer's inputs to keep.

    Raises:
        ConfigError: A number out of range.
        EmptyDomainError: There is no rollout.
        LayoutError: A model whose MLPs or heads cannot be told; the message names the module.
        NonFiniteError: An activation is NaN or infinite; the message names the module.
    """
    from rlforget.circuits.heads import HeadSites  # the other way round is the rule: circuits stand on Fishers

    if directions < 1:
        raise ConfigError("directions", expected="at least 1", found=str(directions), fix="Keep one or more.")
    sites = HeadSites(model)
    mlps = channels_of(model, sites.layers)
    watch = _Watch(model, mlps, directions)
    heads = [torch.zeros(count, dtype=torch.float64) for count in sites.heads]
    prompts = collect(model, batches, samples=samples, seed=seed, tokenizer=tokenizer)
    rows = 0
    for batch in completed(model, prompts, seed=seed, tokenizer=tokenizer):
        for start in range(0, batch["input_ids"].shape[0], _ROWS_AT_ONCE):
            part = {name: value[start : start + _ROWS_AT_ONCE] for name, value in batch.items()}
            mask = part["attention_mask"].bool()
            rows += mask.shape[0]
            seen = sites.observable(_forward(model, part, 1))
            with measuring(model), torch.no_grad(), seen, watch.over(mask), sites.capture() as outputs:
                _forward(model, part)()
            for total, z in zip(heads, outputs, strict=True):
                total += z[mask].float().norm(dim=-1).sum(0, dtype=torch.float64).cpu()
    return Routes(
        channels={mlp.name: total / watch.tokens for mlp, total in zip(mlps, watch.channels, strict=True)},
        heads={name: total / watch.tokens for name, total in zip(sites.names, heads, strict=True)},
        inputs={name: sketch.directions(directions) for name, sketch in watch.sketches.items()},
        samples=rows,
        tokens=watch.tokens,
        parts=Parts.of(model, mlps, sites.names),
    )


def _forward(model: nn.Module, batch: dict[str, Tensor], rows: int | None = None) -> Callable[[], object]:
    return lambda: next_token_log_probs(model, {name: value[:rows] for name, value in batch.items()})


class _Watch:
    """Sums over the inputs of linear layers, while forward passes go by.

    Args:
        model: The model.
        mlps: Its MLPs.
        directions: How many principal directions are wanted.

    Attributes:
        channels: For each MLP, the sum of its channels' absolute activations, float64 on the CPU.
        sketches: For each linear layer, what its inputs are made of. Layers that are given the very same tensor, such
            as the projections of queries, keys and values, have one together.
        tokens: How many positions went in.
    """

    def __init__(self, model: nn.Module, mlps: list[Channels], directions: int) -> None:
        self.channels = [torch.zeros(mlp.count, dtype=torch.float64) for mlp in mlps]
        self.sketches: dict[str, Sketch] = {}
        self.tokens = 0
        self._directions = directions
        self._numbers = {mlp.module: number for number, mlp in enumerate(mlps)}
        self._layers = {name: module for name, module in model.named_modules() if is_linear(module)}
        self._mask = torch.empty(0, dtype=torch.bool)
        self._latest: tuple[Tensor, Sketch] | None = None

    def over(self, mask: Tensor) -> ExitStack:
        """Watch the forward pass in the block; `mask`, bool [B, T], says which positions count."""
        self._mask, self._latest = mask, None
        self.tokens += int(mask.sum())
        hooks = ExitStack()
        for name, module in self._layers.items():
            hooks.callback(module.register_forward_pre_hook(self._hook(name)).remove)
        return hooks

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            given: Tensor = args[0]
            known = self.sketches.get(name)
            if self._latest is not None and given is self._latest[0] and known in (None, self._latest[1]):
                self.sketches[name] = self._latest[1]
                return
            rows = self._counted(name, given)
            if known is None:
                width = rows.shape[1]
                size = width if width <= _EXACT_WIDTH else max(_SKETCHED, 4 * self._directions)
                known = self.sketches[name] = Sketch(width, size, rows.device)
            known.add(rows)
            self._latest = given, known
            number = self._numbers.get(module)
            if number is not None:
                self.channels[number] += rows.abs().sum(0, dtype=torch.float64).cpu()

        return hook

    def _counted(self, name: str, given: Tensor) -> Tensor:
        """Return the inputs at the positions that count, [tokens, width]."""
        for leading in (self._mask.shape, (self._mask.numel(),)):
            if given.shape[:-1] == leading:
                rows = given.reshape(-1, given.shape[-1])[self._mask.flatten()]
                wrong = int((~rows.isfinite()).sum())
                if not wrong:
                    return rows
                raise NonFiniteError(
                    f"the inputs of {name!r}",
                    expected="finite activations",
                    found=f"NaN or Inf in {wrong} of {rows.numel()}",
                    fix="Look for NaN or Inf in the weights, and for activations beyond the range of their dtype.",
                )
        raise LayoutError(
            f"the inputs of {name!r}",
            expected=f"one for each of {list(self._mask.shape)} positions",
            found=f"inputs of shape {list(given.shape)}",
            fix="Use a model whose linear layers see every position, without routed experts.",
        )
