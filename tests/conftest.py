"""What every test run shares."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import hypothesis
import pytest

from tests.torture.injection import Server, started

hypothesis.settings.register_profile("rlforget", deadline=None, print_blob=True, max_examples=40)
hypothesis.settings.register_profile("long", deadline=None, print_blob=True, max_examples=1000)  # --hypothesis-profile
hypothesis.settings.register_profile("thorough", deadline=None, print_blob=True, max_examples=40)  # the slow suite's
hypothesis.settings.load_profile("rlforget")


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts what runs in the background with Ctrl-C ignored, and so would everything that is started from here.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    """Interpret Triton kernels, unless the run is for a device: a process can do only one of the two."""
    if config.option.markexpr != "gpu":
        os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Runs jobs on failing disks, each in a process of its own."""
    with started(tmp_path_factory.mktemp("injection")) as running:
        yield running
