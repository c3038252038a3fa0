"""Where a model's attention heads can be read and replaced: the input of each attention's output projection."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rlforget.errors import LayoutError

logger = logging.getLogger(__name__)

Edit = Callable[[int, Tensor], Tensor]
"""From a layer's index and its heads' outputs [B, T, heads, head_dim] to what the layer is to go on with."""

OUTPUT_PROJECTIONS = ("o_proj", "out_proj", "c_proj", "dense", "wo", "proj")
"""What the output projection of an attention module is called, among the models of transformers."""

_HEAD_COUNTS = ("num_heads", "num_attention_heads", "n_heads", "n_head")
_FIX_MODEL = "Use a decoder-only model of transformers, or name its attention's output projection o_proj."


class HeadSites:
    """The attention heads of a decoder, layer by layer.

    A head's output is its slice of the input of the attention's output projection: what the head adds to the residual
    stream is that slice times the projection's matching columns. So it is there for any architecture, whatever the
    sharing of keys and values, and needs no conversion of the model.

    Attributes:
        layers: Number of decoder layers.
        heads: Query heads of each layer; the same in all.
        head_dim: Width of a head's output in each layer.
        names: The path of each attention module, e.g. `model.layers.0.self_attn`.
        attentions: The attention modules.
        modules: The output projections (nn.Linear, transformers' Conv1D, or an adapter around one).
        blocks: The decoder layers that hold them; empty where the model has no list of layers.
        shape: (layers, heads).

    Args:
        model: A decoder-only language model.

    Raises:
        LayoutError: A layer without a known output projection, a number of heads that does not divide its width, an
            encoder-decoder, or a model whose weights are quantised, sharded or elsewhere.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        _check_whole(model)
        found = _attentions(model)
        self.names = [name for name, _, _ in found]
        self.attentions = [attention for _, attention, _ in found]
        self.modules = [projection for _, _, projection in found]
        self.layers = len(found)
        self.heads = [_head_count(model, attention) for attention in self.attentions]
        self.head_dim = [
            _head_dim(name, _width(module), heads)
            for name, module, heads in zip(self.names, self.modules, self.heads, strict=True)
        ]
        if len(set(self.heads)) > 1:
            raise _fault(model, "as many heads in every layer", f"{sorted(set(self.heads))} heads")
        self.blocks = _blocks(model, self.names)

    @property
    def shape(self) -> tuple[int, int]:
        """(layers, heads), the shape of every table of heads."""
        return self.layers, self.heads[0]

    @contextmanager
    def capture(self) -> Iterator[list[Tensor]]:
        """Read the heads' outputs of every forward in the block.

        Yields:
            One tensor [B, T, heads, head_dim] a layer, in the model's dtype, of the latest forward; empty tensors
            before the first. They are part of the graph where autograd is on (and require a gradient even where no
            parameter does); inside `edited` they are the edited ones.
        """
        found = [torch.empty(0) for _ in self.modules]

        def keep(layer: int, z: Tensor) -> Tensor:
            if torch.is_grad_enabled() and not z.requires_grad:
                z = z.detach().requires_grad_()
            found[layer] = z
            return z

        with self.edited(keep):
            yield found

    @contextmanager
    def edited(self, edit: Edit, *, layers: Collection[int] | None = None) -> Iterator[None]:
        """Let every forward in the block go on with `edit(layer, z)` in place of the heads' outputs z.

        `edit` returns a tensor of z's shape and dtype, or z itself, and must not write to z. Blocks nest: the inner
        edit sees what the outer one left.

        Args:
            edit: The replacement.
            layers: The layers it is asked about; by default all.

        Raises:
            LayoutError: In the forward: an attention implementation that does not call its output projection.
        """
        wanted = range(self.layers) if layers is None else layers
        reached: set[int] = set()

        def hook_of(layer: int) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
            def hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
                reached.add(layer)
                z = args[0].unflatten(-1, (self.heads[layer], self.head_dim[layer]))
                return (edit(layer, z).flatten(-2), *args[1:])

            return hook

        def start(*_: Any) -> None:
            reached.clear()

        def check(*_: Any) -> None:
            missed = [layer for layer in wanted if layer not in reached]
            if missed:
                raise self._bypassed(missed[0])

        with ExitStack() as hooks:
            hooks.callback(self.model.register_forward_pre_hook(start).remove)
            for layer in wanted:
                hooks.callback(self.modules[layer].register_forward_pre_hook(hook_of(layer)).remove)
            hooks.callback(self.model.register_forward_hook(check).remove)
            yield

    @contextmanager
    def observable(self, forward: Callable[[], object]) -> Iterator[None]:
        """Hold, inside the block, an attention implementation that the hooks see.

        Args:
            forward: Runs the model on a small input.

        Raises:
            LayoutError: The heads are out of sight even with eager attention.
        """
        try:
            with torch.no_grad(), self.edited(lambda layer, z: z):
                forward()
            seen = True
        except LayoutError:
            seen = False
        if seen:
            yield
            return
        with self._eager():
            with torch.no_grad(), self.edited(lambda layer, z: z):
                forward()
            yield

    @contextmanager
    def _eager(self) -> Iterator[None]:
        config: Any = getattr(self.model, "config", None)
        switch = getattr(self.model, "set_attn_implementation", None)
        before = getattr(config, "_attn_implementation", None)
        if switch is None or before in (None, "eager"):
            raise self._bypassed(0)
        logger.warning("attention implementation %r hides the heads: switched to eager meanwhile", before)
        switch("eager")
        try:
            yield
        finally:
            switch(before)

    def _bypassed(self, layer: int) -> LayoutError:
        return LayoutError(
            f"{type(self.model).__name__}, {self.names[layer]}",
            expected="an attention that calls its output projection",
            found="a forward in which it was not called",
            fix='Load the model with attn_implementation="eager", without fused kernels.',
        )


def _attentions(model: nn.Module) -> list[tuple[str, nn.Module, nn.Module]]:
    """Find (path, attention, output projection) of each decoder layer, in order."""
    config = _text_config(model)
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise _fault(model, "a decoder-only model", "an encoder and a decoder")
    decoder = _decoder(model)
    prefix = next((f"{name}." for name, module in model.named_modules() if module is decoder and name), "")
    found = []
    for name, module in decoder.named_modules():
        leaf = name.rpartition(".")[2]
        if "cross" in name or not ("attn" in leaf or "attention" in leaf or leaf == "att"):
            continue
        projection = next((p for p in map(module._modules.get, OUTPUT_PROJECTIONS) if _is_linear(p)), None)
        if projection is not None:
            found.append((prefix + name, module, projection))
    layers = getattr(config, "num_hidden_layers", None) or len(found)
    if not found or len(found) != layers:
        expected = f"an attention with one of {', '.join(OUTPUT_PROJECTIONS)} in each of {layers} layers"
        raise _fault(model, expected, f"{len(found)} of them")
    return found


def _decoder(model: nn.Module) -> nn.Module:
    get = getattr(model, "get_decoder", None)
    decoder = get() if callable(get) else model
    return decoder if isinstance(decoder, nn.Module) else model


def _text_config(model: nn.Module) -> Any:
    config: Any = getattr(model, "config", None)
    get = getattr(config, "get_text_config", None)
    return get(decoder=True) if callable(get) else config


def _is_linear(module: nn.Module | None) -> bool:
    return module is not None and (
        isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D" or hasattr(module, "base_layer")
    )


def _width(module: nn.Module) -> int:
    """Return the size of a projection's input."""
    inner: Any = getattr(module, "base_layer", module)
    return int(inner.weight.shape[0] if type(inner).__name__ == "Conv1D" else inner.in_features)


def _head_count(model: nn.Module, attention: nn.Module) -> int:
    for owner in (attention, getattr(attention, "config", None), _text_config(model)):
        for name in _HEAD_COUNTS:
            count = getattr(owner, name, None)
            if isinstance(count, int):
                return count
    raise _fault(model, f"a number of heads under one of {', '.join(_HEAD_COUNTS)}", "none")


def _head_dim(name: str, width: int, heads: int) -> int:
    if heads < 1 or width % heads:
        raise LayoutError(
            name, expected="a projection whose width the heads divide", found=f"{width} for {heads}", fix=_FIX_MODEL
        )
    return width // heads


def _blocks(model: nn.Module, names: list[str]) -> list[nn.Module]:
    """Find the entries of the list of decoder layers; none where a block does not hold exactly one attention."""
    blocks = []
    for name in names:
        parts = name.split(".")
        paths = (".".join(parts[:end]) for end in range(1, len(parts)))
        lists = [path for path in paths if isinstance(model.get_submodule(path), nn.ModuleList)]
        if not lists:
            return []
        blocks.append(model.get_submodule(".".join(parts[: lists[0].count(".") + 2])))
    return blocks if len({id(block) for block in blocks}) == len(blocks) else []


def _check_whole(model: nn.Module) -> None:
    """Refuse weights that are not plain floating-point tensors on one device."""
    fix = "Load the model in float32, bfloat16 or float16, whole, on one device."
    if getattr(model, "is_quantized", False) or getattr(getattr(model, "config", None), "quantization_config", None):
        raise _fault(model, "weights in floating point", "a quantised model", fix)
    devices = set()
    for name, parameter in model.named_parameters():
        devices.add(parameter.device)
        if not parameter.is_floating_point() or parameter.element_size() == 1:
            raise _fault(model, "weights in floating point", f"{name} in {parameter.dtype}", fix)
        if hasattr(parameter, "full_tensor") or type(parameter).__name__ == "FlatParameter":
            raise _fault(model, "whole weights", f"{name}, which is sharded", fix)
    if len(devices) > 1 or any(device.type == "meta" for device in devices):
        raise _fault(model, "weights on one device", f"some on {', '.join(sorted(map(str, devices)))}", fix)


def _fault(model: nn.Module, expected: str, found: str, fix: str = _FIX_MODEL) -> LayoutError:
    return LayoutError(type(model).__name__, expected=expected, found=found, fix=fix)
