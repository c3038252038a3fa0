"""Where the package lives must not get in the way of the PyPI package `kernels`, which transformers imports."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def regular_package_inside_the_repository(spec: importlib.machinery.ModuleSpec | None) -> bool:
    return spec is not None and spec.origin is not None and ROOT in Path(spec.origin).resolve().parents


def test_no_regular_package_named_kernels_here(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.syspath_prepend(str(ROOT / "kernels"))
    assert not regular_package_inside_the_repository(importlib.util.find_spec("kernels"))


def test_the_check_would_see_one():
    assert regular_package_inside_the_repository(importlib.util.find_spec("rlforget_kernels"))


def test_importing_the_operators_imports_no_backend():
    """numba and triton together cost seconds; they are imported when an operator first needs them."""
    program = "import sys, rlforget_kernels; print([m for m in ('numba', 'triton') if m in sys.modules])"
    before = "import sys, torch; print([m for m in ('numba', 'triton') if m in sys.modules])"
    loaded = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        for code in (program, before)
    ]
    assert loaded[0] == loaded[1]
