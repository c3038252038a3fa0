"""What the weights on the two sides of a delta look like."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from rlforget.weights import Layout, TensorMeta

WholeMetas = Mapping[str, tuple[TensorMeta | None, TensorMeta | None]]
"""{name: dtype and shape before and after}; None: not there."""


def fault_in_names(kept: Iterable[str], whole: WholeMetas, renamed: Mapping[str, str]) -> str | None:
    """Return what is wrong with the names of a delta's tensors, or None.

    By one name goes one tensor before and one after. The name of a tensor that is dropped stays its own, and one that
    is added takes none that another had before: else the way back could not tell them apart.

    Args:
        kept: The tensors that keep shape and dtype, by their names before; repeated ones are found.
        whole: The others.
        renamed: {name before: name after}.
    """
    names = [*kept, *whole]
    if twice := _repeated(names):
        return f"two tensors called {twice!r} before"
    if strange := renamed.keys() - set(names):
        return f"another name for {min(strange)!r}, which is no tensor"
    gone = {name for name, (_, now) in whole.items() if now is None}
    after = [renamed.get(name, name) for name in names if name not in gone]
    if twice := _repeated([*after, *gone]):
        return f"two tensors called {twice!r} after, or one that takes the name of one that is dropped"
    come = {name for name, (was, _) in whole.items() if was is None}
    if come & renamed.keys():
        return f"another name for {min(come & renamed.keys())!r}, which was not there before"
    return None


def _repeated(names: Iterable[str]) -> str | None:
    return next((name for name, count in Counter(names).items() if count > 1), None)


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
