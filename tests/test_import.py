"""Importing the package is free, and using its names stays light."""

from __future__ import annotations

import ast
import importlib.util
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import rlforget

HEAVY = (
    "trl",
    "datasets",
    "transformers",
    "peft",
    "accelerate",
    "typer",
    "rich",
    "plotly",
    "pydantic",
    "numba",
    "scipy",
)
ROOT = Path(rlforget.__file__).parent


def modules_after(code: str) -> set[str]:
    """Return the names of the modules that a fresh interpreter has loaded after `code`."""
    script = f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.fixture(scope="module")
def torch_alone() -> set[str]:
    return modules_after("import torch")


def test_import_loads_nothing_but_the_package_itself() -> None:
    added = modules_after("import rlforget") - modules_after("import importlib, typing, __future__")
    assert {name for name in added if "." not in name} <= {"rlforget"} | set(sys.stdlib_module_names)


def test_names_of_the_weights_and_deltas_stay_light(torch_alone: set[str]) -> None:
    added = modules_after("import torch, rlforget as rf\nrf.diff, rf.Delta, rf.apply, rf.open_weights") - torch_alone
    packages = {name.split(".")[0] for name in added} - set(sys.stdlib_module_names)
    assert {"rlforget", "rlforget_kernels", "safetensors"} <= packages
    assert packages.isdisjoint({*HEAVY, "triton"})
    assert len(added) < 150


def test_all_public_names_exist_and_stay_light(torch_alone: set[str]) -> None:
    # A trainer's callback is as heavy as the trainer.
    code = "import rlforget as rf\nfor name in rf.__all__:\n    if name != 'ForgettingMonitor': getattr(rf, name)"
    packages = {name.split(".")[0] for name in modules_after(code) - torch_alone}
    assert packages.isdisjoint(HEAVY)


def test_type_checkers_see_every_public_name() -> None:
    tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen | {"__version__"} == set(rlforget.__all__)


def test_no_package_bears_the_name_of_a_public_function() -> None:
    functions = {name for name in rlforget._HOME if name.islower()}
    assert functions.isdisjoint(module.name for module in pkgutil.iter_modules([str(ROOT)]))


def test_names_are_listed_and_others_refused() -> None:
    assert set(rlforget.__all__) <= set(dir(rlforget))
    with pytest.raises(AttributeError, match="no_such_name"):
        rlforget.no_such_name  # noqa: B018


def test_no_importable_package_named_kernels_in_the_repository() -> None:
    found = importlib.util.find_spec("kernels")
    assert found is None or found.origin is None or ROOT.parent not in Path(found.origin).parents


def test_training_without_its_extra_names_the_extra() -> None:
    code = "import sys; sys.modules['pydantic'] = None\nimport rlforget as rf\nrf.training.StageConfig"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "pip install 'rlforget[train]'" in done.stderr
