"""What the weights on the two sides of a delta look like."""

from __future__ import annotations

from collections.abc import Mapping

from rlforget.weights import Layout, TensorMeta

WholeMetas = Mapping[str, tuple[TensorMeta | None, TensorMeta | None]]
"""{name: dtype and shape before and after}; None: not there."""


def before_side(kept: Mapping[str, TensorMeta], whole: WholeMetas, aliases: Mapping[str, str]) -> Layout:
    """Return the tensors before.

    Args:
        kept: The tensors that keep shape and dtype, by their names before.
        whole: The others.
        aliases: Further names, with the names they stand for.
    """
    metas = {**kept, **{name: was for name, (was, _) in whole.items() if was is not None}}
    return Layout("the delta's before side", metas, _among(metas, aliases))


def after_side(
    kept: Mapping[str, TensorMeta], whole: WholeMetas, aliases: Mapping[str, str], renamed: Mapping[str, str]
) -> Layout:
    """Return the tensors after, as they are called then; `renamed` has {name before: name after}."""
    metas = {**kept, **{name: now for name, (_, now) in whole.items() if now is not None}}
    called = {renamed.get(name, name): meta for name, meta in metas.items()}
    names = {alias: renamed.get(name, name) for alias, name in aliases.items()}
    return Layout("the delta's after side", called, _among(called, names))


def _among(metas: Mapping[str, TensorMeta], aliases: Mapping[str, str]) -> dict[str, str]:
    return {alias: name for alias, name in aliases.items() if name in metas and alias not in metas}
