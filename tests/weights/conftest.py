"""A server that runs jobs on failing disks, and checkpoints for them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.torture.injection import Server, compiled


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    library = compiled(tmp_path_factory.mktemp("injection"))
    if library is None:
        pytest.skip("faults are injected by a library that needs Linux and a C compiler")
    with Server(library) as running:
        yield running
