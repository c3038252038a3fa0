"""Which tensors of a language model an adapter can hold: the weights of linear layers, by the model's own modules.

Where the base is a live model, its modules tell. Where it is a folder with a config that transformers knows, the same
model is built without memory. Else names tell: a matrix called `….weight` is a linear layer's, unless its name is one
that embeddings go by.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from rlforget.weights import TensorMeta, WeightsLike

Kind = Literal["linear", "transposed", "bias", "other"]

_EMBEDDING = re.compile(r"embed|(^|\.)(wte|wpe|wtt|shared|relative_attention_bias)(\.|$)")


@dataclass(frozen=True)
class Place:
    """Where a tensor stands in a model.

    Attributes:
        module: The path of the module that it belongs to, as PEFT calls it.
        parameter: Its name there.
        kind: `linear`: [out, in] of an `nn.Linear`; `transposed`: [in, out] of transformers' `Conv1D`; `bias`: of one
            of these; `other`: anything else.
    """

    module: str
    parameter: str
    kind: Kind


def places(
    metas: Mapping[str, TensorMeta], aliases: Mapping[str, str], base: WeightsLike | None
) -> tuple[dict[str, Place], dict[str, str]]:
    """Return where each tensor stands, and {further name: name} of the embeddings that are used again elsewhere.

    Args:
        metas: The tensors.
        aliases: Further names of tied ones, with the names they stand for: what is tied to an embedding is none of a
            linear layer.
        base: The model before, or its folder; None: names tell.
    """
    model = _skeleton(base)
    found = _by_name(metas) if model is None else _by_module(metas, model)
    embeddings = set(filter(is_embedding, metas)) | {name for alias, name in aliases.items() if is_embedding(alias)}
    known = {name: replace(place, kind="other") if name in embeddings else place for name, place in found.items()}
    tied = {alias: name for alias, name in aliases.items() if name in embeddings}
    return known, tied if model is None else tied | _tied_output(known, model)


def _tied_output(known: Mapping[str, Place], model: Any) -> dict[str, str]:
    """Return the output layer's weight and the embedding's that it is, where a language model ties the two."""
    if not getattr(getattr(model, "config", None), "tie_word_embeddings", False):
        return {}
    path_of = {module: path for path, module in model.named_modules()}
    output = path_of.get(model.get_output_embeddings())
    source = path_of.get(model.get_input_embeddings())
    return {f"{output}.weight": name for name, place in known.items() if output and place.module == source}


def is_embedding(name: str) -> bool:
    """Whether a tensor is called as those of embeddings are."""
    return _EMBEDDING.search(name) is not None


def _by_name(metas: Mapping[str, TensorMeta]) -> dict[str, Place]:
    linear = {
        name.removesuffix(".weight") for name, m in metas.items() if name.endswith(".weight") and len(m.shape) == 2
    }
    return {name: _place(name, linear, ()) for name in metas}


def _by_module(metas: Mapping[str, TensorMeta], model: nn.Module) -> dict[str, Place]:
    modules = dict(model.named_modules())
    linear = {path for path, module in modules.items() if isinstance(module, nn.Linear)}
    transposed = {path for path, module in modules.items() if type(module).__name__ == "Conv1D"}
    prefix = str(getattr(model, "base_model_prefix", ""))
    found = {}
    for name in metas:
        # A checkpoint of the model without its head leaves the prefix out.
        inside = name.rpartition(".")[0] not in modules and f"{prefix}.{name}".rpartition(".")[0] in modules
        found[name] = _place(f"{prefix}.{name}" if inside else name, linear, transposed)
    return found


def _place(name: str, linear: Iterable[str], transposed: Iterable[str]) -> Place:
    module, _, parameter = name.rpartition(".")
    kind: Kind = "other"
    if module in linear or module in transposed:
        kinds: dict[str, Kind] = {"weight": "linear" if module in linear else "transposed", "bias": "bias"}
        kind = kinds.get(parameter, "other")
    return Place(module, parameter, kind)


def _skeleton(base: WeightsLike | None) -> nn.Module | None:
    """Return the model without its values; None where nothing tells which it is."""
    if isinstance(base, nn.Module):
        return base
    path = base if isinstance(base, str | Path) else getattr(base, "path", None)
    if path is None or not (Path(path) / "config.json").is_file():
        return None
    try:
        from transformers import AutoConfig, AutoModelForCausalLM

        config: Any = AutoConfig.from_pretrained(str(path))
        with torch.device("meta"):
            model: nn.Module = AutoModelForCausalLM.from_config(config)
    except (ImportError, ValueError, KeyError, OSError):  # not installed, or a model that it does not know
        return None
    return model
