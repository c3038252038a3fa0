"""Compiled code is kept on disk, wherever the package is installed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "kernels" / "rlforget_kernels"
PROGRAM = """
import torch
from rlforget_kernels.fingerprint import fingerprint
from rlforget_kernels.fisher_accumulate import fisher_accumulate_
fingerprint(torch.ones(9))
fisher_accumulate_(torch.ones(9), torch.ones(9))
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """The package where nothing can be written beside its modules, not even by root."""
    site = tmp_path / "site"
    shutil.copytree(PACKAGE, site / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    for folder in [path for path in (site / PACKAGE.name).rglob("*") if path.is_dir()]:
        (folder / "__pycache__").write_text("in the way of a folder")
    return site


def cache_events(site: Path, folder: Path) -> str:
    """Run the program in a process of its own; return what numba says of its cache."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("NUMBA_", "XDG_"))}
    found = {"PYTHONPATH": str(site), "NUMBA_DEBUG_CACHE": "1", "HOME": str(folder), "XDG_CACHE_HOME": str(folder)}
    run = subprocess.run(
        [sys.executable, "-B", "-c", PROGRAM], env=clean | found, capture_output=True, text=True, check=True
    )
    return run.stdout


def test_a_package_that_cannot_be_written_is_cached_for_the_user(site: Path, tmp_path: Path):
    home = tmp_path / "home"
    first, second = cache_events(site, home), cache_events(site, home)
    assert "data saved to" in first
    assert "data loaded from" not in first
    assert str(home) in first
    assert "data loaded from" in second
    assert "data saved to" not in second


def change(site: Path, source: str) -> None:
    with (site / PACKAGE.name / source).open("a") as file:
        file.write("\n# changed\n")


def test_a_change_of_what_kernels_share_compiles_them_again(site: Path, tmp_path: Path):
    home = tmp_path / "home"
    assert "data saved to" in cache_events(site, home)
    change(site, "common/rounding.py")
    after = cache_events(site, home)
    assert "data saved to" in after
    assert "data loaded from" not in after
    # Whose constants one operator's kernels take, and no others.
    change(site, "fingerprint/reference.py")
    after = cache_events(site, home)
    assert of_operators(after, "saved to") == {"fingerprint"}
    assert "fisher_accumulate" in of_operators(after, "loaded from")
    assert "fingerprint" not in of_operators(after, "loaded from")


def of_operators(events: str, what: str) -> set[str]:
    """The folders of the package whose kernels were `what`: numba names its own folders after them."""
    return set(re.findall(rf"data {what} '.*/(\w+)_[0-9a-f]{{40}}/[^/]*'", events))
