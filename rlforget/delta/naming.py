"""What a tensor is for, told from its name: its kind and its layer."""

from __future__ import annotations

import re

KINDS: tuple[str, ...] = ("attention", "mlp", "embedding", "norm", "other")
"""The kinds of tensors, in the order in which they are shown."""

# The first match counts: `self_attn.q_norm` is a norm, `mlp.gate` is a part of the MLP.
_PATTERNS = (
    ("norm", re.compile(r"norm|(^|\.)ln(_\w+|\d*)(\.|$)", re.IGNORECASE)),
    ("attention", re.compile(r"attn|attention|(^|[._])(qkv|[qkvo])_proj(\.|$)", re.IGNORECASE)),
    ("mlp", re.compile(r"mlp|ffn|feed_?forward|expert|moe|(^|\.)(fc\d|intermediate)(\.|$)|(gate|up|down)_proj")),
    ("embedding", re.compile(r"embed|(^|\.)(wte|wpe|lm_head)(\.|$)", re.IGNORECASE)),
)


def kind_of(name: str) -> str:
    """Return the kind of a tensor, one of `KINDS`; the output head counts as an embedding."""
    return next((kind for kind, pattern in _PATTERNS if pattern.search(name)), "other")


def layer_of(name: str) -> int | None:
    """Return the number of the layer that a tensor lies in: the first number among the parts of its name."""
    return next((int(part) for part in name.split(".") if part.isdecimal()), None)


def module_of(name: str) -> str:
    """Return what a tensor is within its layer: the last part of its name that is no number, `weight` or `bias`."""
    parts = [part for part in name.split(".") if part and not part.isdecimal()]
    named = [part for part in parts if part not in ("weight", "bias")]
    return (named or parts or [name])[-1]
