"""The methods of finding circuits, one a file. Each scores every head (see `result.Method`)."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping

from rlforget.circuits.methods.result import Method, MethodResult
from rlforget.errors import UnknownNameError

__all__ = ["METHODS", "Method", "MethodResult"]

_MODULES = {
    "patching": "patching",
    "attribution": "attribution",
    "eap-ig": "eap_ig",
    "masking": "masking",
    "random": "random",
}


class _Methods(Mapping[str, Method]):
    """The function `score` of each method's module, imported when it is first asked for."""

    def __getitem__(self, name: str) -> Method:
        if name not in _MODULES:
            raise UnknownNameError(
                f"method {name!r}",
                expected=f"one of {', '.join(_MODULES)}",
                found=repr(name),
                fix="Check the spelling.",
            )
        module = importlib.import_module(f"rlforget.circuits.methods.{_MODULES[name]}")
        method: Method = module.score
        return method

    def __iter__(self) -> Iterator[str]:
        return iter(_MODULES)

    def __len__(self) -> int:
        return len(_MODULES)


METHODS: Mapping[str, Method] = _Methods()
"""From the names that `find(method=...)` takes to the functions."""
