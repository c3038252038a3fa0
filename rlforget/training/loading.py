"""The model that a configuration names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from rlforget.domains import miniature
from rlforget.errors import ConfigError, NotACheckpointError
from rlforget.training.config import SequenceConfig
from rlforget.training.quiet import quiet

_HUB_ID = re.compile(r"^\w[\w.-]*(/\w[\w.-]*)?$")


def load_model(config: SequenceConfig) -> tuple[Any, Any]:
    """Load the model of a configuration and its tokenizer; see `load_named`."""
    return load_named(config.model, device=config.device, dtype=config.dtype)


def load_named(name: str, *, device: str = "auto", dtype: str = "auto") -> tuple[Any, Any]:
    """Load a model, on its device, in its dtype and in evaluation mode, and its tokenizer.

    Args:
        name: `miniature`, a checkpoint folder, or a model id of the Hugging Face hub.
        device: `cpu`, `cuda`, or `auto`: the GPU where there is one.
        dtype: Name of a dtype, or `auto`: the checkpoint's own.

    Raises:
        NotACheckpointError: `name` names no model.
        ConfigError: The device is not there, or the tokenizer has no end token.
    """
    place = _device(device)
    with quiet():
        model, tokenizer = miniature.load() if name == "miniature" else _pretrained(name)
    if dtype != "auto":
        model = model.to(getattr(torch, dtype))
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            f"model {name!r}",
            expected="a tokenizer with an end token",
            found="none",
            fix="Set eos_token in the checkpoint's tokenizer_config.json.",
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model.to(place).eval(), tokenizer


def _pretrained(name: str) -> tuple[Any, Any]:
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not Path(name).is_dir() and not _HUB_ID.match(name):
        raise _no_model(name, "no such folder")
    try:
        return AutoModelForCausalLM.from_pretrained(name, dtype="auto"), AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, SafetensorError) as fault:
        raise _no_model(name, str(fault).strip().partition("\n")[0]) from fault


def _no_model(name: str, found: str) -> NotACheckpointError:
    expected = "'miniature', the folder of a causal language model, or a model id of the Hugging Face hub"
    return NotACheckpointError(f"model {name!r}", expected=expected, found=found, fix="Check the path.")


def _device(wanted: str) -> str:
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device", expected="a CUDA device", found="none", fix="Set device to auto or cpu.")
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return wanted
