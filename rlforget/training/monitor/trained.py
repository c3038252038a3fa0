"""The trained parameters of a model, end to end: what a monitor passes over, a stretch at a time."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rlforget.errors import LayoutError, ParameterError
from rlforget.weights.sharding import here, is_shard, settle, sharding_of

STRETCH = 1 << 22
"""Coordinates that are looked at at a time: the memory beyond what is kept. A multiple of 8, for packed bits."""


class Stretch(NamedTuple):
    """A range of a line: its coordinates from `start` up to `stop`."""

    line: int
    start: int
    stop: int


class Part(NamedTuple):
    """A part of a parameter in a line.

    Attributes:
        name: The parameter.
        begin: Where the parameter begins in the line.
        start: First flat index of the part in the parameter.
        stop: The one after its last.
    """

    name: str
    begin: int
    start: int
    stop: int


class Line:
    """Parameters of one dtype on one device, laid end to end in the model's order.

    Args:
        parameters: {name: parameter}.

    Attributes:
        parameters: Those.
        starts: Where each begins.
        numel: How many coordinates there are on this rank.
    """

    def __init__(self, parameters: dict[str, nn.Parameter]) -> None:
        self.parameters = parameters
        self._names = tuple(parameters)
        ends = list(accumulate(here(parameter).numel() for parameter in parameters.values()))
        self.starts, self._ends = [0, *ends[:-1]], ends
        self.numel = ends[-1]
        first = here(next(iter(parameters.values())))
        self.dtype, self.device = first.dtype, first.device

    def values(self, start: int, stop: int) -> Tensor:
        """Return the present values of a range: 1-D, a view where it lies in one contiguous parameter."""
        found = self.parts(start, stop)
        parts = [here(self.parameters[name]).reshape(-1)[first:last] for name, _, first, last in found]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def parts(self, start: int, stop: int) -> list[Part]:
        """Return which parts of which parameters a range is made of."""
        found = []
        for k in range(bisect_right(self.starts, start) - 1, bisect_left(self.starts, stop)):
            begin, end = self.starts[k], self._ends[k]
            found.append(Part(self._names[k], begin, max(start - begin, 0), min(stop, end) - begin))
        return found


class Trained:
    """What of a model is trained, tied parameters once, and how many coordinates are frozen.

    Of a sharded model (`fully_shard`, tensor parallel) these are the shards on this rank; of a parameter that several
    ranks hold a copy of, the first of them counts it.

    Args:
        model: The model.

    Attributes:
        lines: A line for each dtype and device.
        everywhere: {name: parameter} of all that is trained, on whichever rank it lies or is counted.
        frozen: Floating-point coordinates that are not trained, and so cannot change.
        sharding: How the parameters lie on the ranks; None: they are whole.

    Raises:
        ParameterError: Nothing is trained, or shards do not tell which part of a parameter they are.
    """

    def __init__(self, model: nn.Module) -> None:
        settle(model)
        floating = {name: p for name, p in model.named_parameters() if p.is_floating_point()}
        for name, p in floating.items():
            # FSDP1's flat parameters and DeepSpeed's: plain tensors that hold but this rank's part.
            if hasattr(p, "_is_flat_param") or hasattr(p, "ds_id"):
                raise ParameterError(
                    f"parameter {name!r}",
                    expected="a whole tensor, or a DTensor that tells which part it is",
                    found="a part of one, flattened by FSDP1 or partitioned by DeepSpeed",
                    fix="Shard with fully_shard (FSDP2), or watch the gathered model.",
                )
        self.sharding = sharding_of(floating) if any(map(is_shard, floating.values())) else None
        trained = {name: p for name, p in floating.items() if p.requires_grad}
        if not trained:
            raise ParameterError(
                type(model).__name__,
                expected="a model with parameters that are trained",
                found=f"{len(floating)} floating-point parameters, and requires_grad on none",
                fix="Turn requires_grad on, or put the monitor on the model that is trained.",
            )
        self.frozen = sum(p.numel() for p in floating.values()) - sum(p.numel() for p in trained.values())
        self.everywhere = trained
        counted = floating.keys() if self.sharding is None else self.sharding.counted
        groups: dict[object, dict[str, nn.Parameter]] = {}
        for name, p in trained.items():
            if name in counted and here(p).numel():
                groups.setdefault((p.dtype, here(p).device), {})[name] = p
        self.lines = [Line(group) for group in groups.values()]

    @property
    def numel(self) -> int:
        """The number of coordinates that are trained, on all ranks."""
        return sum(p.numel() for p in self.everywhere.values())

    def check_shapes(self, what: str, shape_of: Callable[[str], tuple[int, ...] | None]) -> None:
        """Hold something to have every trained parameter, in its shape.

        Args:
            what: What it is, for the message.
            shape_of: Takes a name and returns the shape of the tensor of that name; None where there is none.

        Raises:
            LayoutError: It lacks a parameter, or has it in another shape.
        """
        for name, parameter in self.everywhere.items():
            found = shape_of(name)
            if found != tuple(parameter.shape):
                raise LayoutError(
                    f"{what}, tensor {name!r}",
                    expected=f"shape {tuple(parameter.shape)}, as in the model that is trained",
                    found="no such tensor" if found is None else f"shape {found}",
                    fix="Give one of this very architecture.",
                )

    def stretches(self) -> Iterator[Stretch]:
        """Yield all ranges of all lines, each of `STRETCH` coordinates at most."""
        for number, line in enumerate(self.lines):
            for start in range(0, line.numel, STRETCH):
                yield Stretch(number, start, min(start + STRETCH, line.numel))

    def values(self, stretch: Stretch) -> Tensor:
        """Return the present values of a range; see `Line.values`."""
        return self.lines[stretch.line].values(stretch.start, stretch.stop)
