"""Where a model's MLP channels can be read, and which weights are theirs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rlforget.delta.neurons import INTO, OUT_OF
from rlforget.errors import LayoutError

_INTO = (*INTO, "c_fc")  # GPT-2's names say nothing of how its weights lie, its modules do
_OUT_OF = (*OUT_OF, "c_proj")


@dataclass(frozen=True)
class ChannelBand:
    """The weights of a tensor that are some channel's: a row or a column for each.

    Attributes:
        tensor: The parameter's name.
        dim: The dimension along which the channels lie: channel c has position c, or c and c + channels where the gate
            and the up projection are packed.
    """

    tensor: str
    dim: int

    def chosen(self, indices: Tensor, shape: tuple[int, ...], channels: Tensor) -> Tensor:
        """Tell which flat indices into a tensor of `shape` are of chosen channels.

        Args:
            indices: int64, row-major.
            shape: The tensor's shape.
            channels: bool [channels].
        """
        inner = 1
        for size in shape[self.dim + 1 :]:
            inner *= size
        return channels[(indices // inner) % shape[self.dim] % channels.numel()]


@dataclass(frozen=True)
class Channels:
    """The channels of one MLP: the inputs of the projection out of them.

    Attributes:
        name: The path of the module that holds the projections.
        module: The projection out of the channels.
        count: How many channels there are.
        bands: The weights of the channels: rows of the projections into them with their biases, columns of that out.
    """

    name: str
    module: nn.Module
    count: int
    bands: tuple[ChannelBand, ...]


def channels_of(model: nn.Module, layers: int) -> list[Channels]:
    """Find the MLPs of a decoder, in order.

    Args:
        model: A language model whose MLPs are linear layers (nn.Linear, transformers' Conv1D).
        layers: How many layers must have one.

    Raises:
        LayoutError: A layer without a known MLP, experts packed into one tensor, adapters, or quantised layers.
    """
    packed = [name for name, p in model.named_parameters() if p.dim() == 3 and "expert" in name]
    if packed:
        raise _fault(model, f"experts packed into {packed[0]!r}, of which no channel can be read")
    found = []
    for name, block in model.named_modules():
        children = dict(block.named_children())
        out = next((part for part in _OUT_OF if part in children), None)
        into = [part for part in _INTO if part in children]
        if out is None or not into:
            continue
        wrong = next((part for part in (out, *into) if not _is_plain(children[part])), None)
        if wrong is not None:
            raise _fault(model, f"{name}.{wrong}, a {type(children[wrong]).__name__}")
        count = _size(children[out], of_input=True)
        bands = [ChannelBand(f"{name}.{out}.weight", 1 if isinstance(children[out], nn.Linear) else 0)]
        for part in into:
            if _size(children[part], of_input=False) % count:
                raise _fault(model, f"{name}.{part}, whose outputs are not {count} channels")
            bands.append(ChannelBand(f"{name}.{part}.weight", 0 if isinstance(children[part], nn.Linear) else 1))
            if children[part].bias is not None:
                bands.append(ChannelBand(f"{name}.{part}.bias", 0))
        found.append(Channels(name, children[out], count, tuple(bands)))
    if len(found) < layers:
        raise _fault(model, f"{len(found)} in {layers} layers")
    return found


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer that stores its weight as such: nn.Linear or transformers' Conv1D."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _is_plain(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return is_linear(module) and isinstance(weight, torch.Tensor) and weight.dim() == 2 and weight.is_floating_point()


def _size(module: nn.Module, *, of_input: bool) -> int:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.shape[1 if isinstance(module, nn.Linear) == of_input else 0]


def _fault(model: nn.Module, found: str) -> LayoutError:
    return LayoutError(
        f"{type(model).__name__}",
        expected="an MLP of linear layers in every layer, called e.g. up_proj and down_proj, or fc1 and fc2",
        found=found,
        fix="Merge adapters, dequantise, or use a model without packed experts.",
    )
