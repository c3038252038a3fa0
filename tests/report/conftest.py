"""What the tests of the report share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.report.made_results import made_results


@pytest.fixture(scope="session")
def made() -> str:
    """Results of two seeds, as JSON: loaded anew by whoever changes them."""
    return json.dumps(made_results(seeds=2))


@pytest.fixture
def results(made: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(made)
    return loaded


@pytest.fixture
def run(made: str, tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "results.json").write_text(made)
    return folder
