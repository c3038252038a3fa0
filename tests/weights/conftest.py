"""A server that runs jobs on failing disks, and checkpoints for them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.torture.injection import Server, started


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with started(tmp_path_factory.mktemp("injection")) as running:
        yield running
