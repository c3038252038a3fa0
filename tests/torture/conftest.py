"""What the torture works on, how long it may take, and the summary."""

from __future__ import annotations

import json
import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.torture.injection import Server
from tests.torture.pace import Pace
from tests.torture.scenarios import SCENARIOS, Scenario
from tests.torture.torture import Tally, Torture, write_inputs

SUMMARY = "RLFORGET_TORTURE_SUMMARY"
"""Names the file that the summary is written to, as JSON; without it it is only printed."""

SECONDS = 500
"""For all points, once everything is made ready."""

POINTS_A_CALL, OTHER_POINTS = 3.5, 20
"""How many points there are for each call of a scenario, and how many more for each scenario, in time."""


@pytest.fixture(scope="session")
def inputs(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("inputs"), server)


@pytest.fixture(scope="session")
def tortures(
    server: Server, inputs: Path, tallies: object, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Torture]:
    """{scenario: it, made ready}."""

    def ready(scenario: Scenario) -> Torture:
        return Torture(scenario, server, inputs, tmp_path_factory.mktemp("torture"))

    return {scenario.name: ready(scenario) for scenario in SCENARIOS}


@pytest.fixture(scope="session")
def pace(tortures: dict[str, Torture]) -> Pace:
    """Says which points there is time for."""
    points = sum(POINTS_A_CALL * torture.calls + OTHER_POINTS for torture in tortures.values())
    return Pace(SECONDS, points)


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
