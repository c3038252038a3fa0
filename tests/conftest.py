"""What every test run shares."""

from __future__ import annotations

import os

import hypothesis
import pytest

hypothesis.settings.register_profile("rlforget", deadline=None, print_blob=True, max_examples=40)
hypothesis.settings.register_profile("long", deadline=None, print_blob=True, max_examples=1000)  # --hypothesis-profile
hypothesis.settings.load_profile("rlforget")


def pytest_configure(config: pytest.Config) -> None:
    """Interpret Triton kernels, unless the run is for a device: a process can do only one of the two."""
    if config.option.markexpr != "gpu":
        os.environ["TRITON_INTERPRET"] = "1"
