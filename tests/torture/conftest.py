"""The server that runs the commands, what they work on, and the summary."""

from __future__ import annotations

import json
import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.torture.injection import Server, started
from tests.torture.torture import Tally, write_inputs

SUMMARY = "RLFORGET_TORTURE_SUMMARY"
"""Names the file that the summary is written to, as JSON; without it it is only printed."""

SECONDS = 570
"""After which no further point is tried."""


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with started(tmp_path_factory.mktemp("injection")) as running:
        yield running


@pytest.fixture(scope="session")
def inputs(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("inputs"), server)


@pytest.fixture(scope="session")
def tallies() -> Iterator[defaultdict[str, Tally]]:
    """{scenario: what was found}; all of it is summed up at the end."""
    start, found = time.monotonic(), defaultdict[str, Tally](Tally)
    yield found
    points: Counter[str] = sum((tally.points for tally in found.values()), Counter())
    kills = sum(tally.kills for tally in found.values())
    summary = {
        "kills": kills,
        "errors": points.total() - kills,
        "points": dict(sorted(points.items())),
        "seconds": round(time.monotonic() - start),
        "scenarios": {name: tally.to_dict() for name, tally in found.items()},
    }
    print(json.dumps({key: value for key, value in summary.items() if key != "scenarios"}, indent=1))
    if os.environ.get(SUMMARY):
        Path(os.environ[SUMMARY]).write_text(json.dumps(summary, indent=1) + "\n")


@pytest.fixture(scope="session")
def in_time() -> Callable[[], None]:
    """To be called before each point: skips what is left where the time is over."""
    end = time.monotonic() + SECONDS

    def check() -> None:
        if time.monotonic() > end:
            pytest.skip(f"{SECONDS} s are over; what was reached is in the summary")

    return check
