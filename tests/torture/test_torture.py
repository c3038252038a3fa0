"""Every command that writes, cut short at every call that does: what is found then is the old or the new, whole."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import TypeAlias

import pytest

from tests.torture.disk import small_disk
from tests.torture.injection import (
    BROKEN,
    BROKEN_ONCE,
    FULL,
    KILLED,
    OLD_SYSTEM,
    READ_ONLY,
    SHORT_WRITES,
    TORN,
    Server,
)
from tests.torture.pace import Pace
from tests.torture.scenarios import SCENARIOS, Scenario
from tests.torture.torture import Tally, Torture

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

Tallies: TypeAlias = defaultdict[str, Tally]
Tortures: TypeAlias = dict[str, Torture]
PAGE = 4096

KILLS, LEAST, FEWEST = 300, 0.7, 0.3
"""How many kills are promised; and which share of the kills and the errors is tried however slow the machine is."""

each_scenario = pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)


@each_scenario
def test_a_kill_at_every_call(scenario: Scenario, tortures: Tortures, tallies: Tallies, pace: Pace) -> None:
    torture, tally = tortures[scenario.name], tallies[scenario.name]
    for at in pace.of(torture.calls, cost=1.4, least=LEAST):
        outcome = torture.point(KILLED, at, tally)
        assert outcome.killed
        if outcome.writes:
            assert torture.point(TORN, at, tally).killed


@pytest.mark.parametrize("kind", dict.fromkeys(scenario.kind for scenario in SCENARIOS))
def test_a_kill_of_a_program_that_was_started_anew(kind: str, tortures: Tortures, tallies: Tallies, pace: Pace) -> None:
    scenario = next(scenario for scenario in SCENARIOS if scenario.kind == kind)
    torture = tortures[scenario.name]
    for _ in pace.of(1, cost=5):
        assert torture.point(KILLED, torture.calls // 2, tallies[scenario.name], process=True).killed


@each_scenario
def test_an_error_at_every_call(scenario: Scenario, tortures: Tortures, tallies: Tallies, pace: Pace) -> None:
    torture = tortures[scenario.name]
    for number, at in enumerate(pace.of(torture.calls, cost=2, least=FEWEST)):
        # Two of the four at each call, each of them at every other call.
        for fault in ((FULL, BROKEN_ONCE), (READ_ONLY, BROKEN))[number % 2]:
            torture.point(fault, at, tallies[scenario.name])


@each_scenario
def test_short_writes_and_older_systems_are_no_hindrance(scenario: Scenario, tortures: Tortures) -> None:
    torture = tortures[scenario.name]
    for oddity in (SHORT_WRITES, OLD_SYSTEM):
        work = torture.fresh()
        assert torture.run(scenario.command, work, oddity).code == 0
        assert torture.see(work) == torture.new


@each_scenario
def test_a_small_disk_that_is_really_full_or_read_only(
    scenario: Scenario, server: Server, inputs: Path, tmp_path: Path, tallies: Tallies, pace: Pace
) -> None:
    with small_disk(tmp_path / "disk") as disk:
        torture = Torture(scenario, server, inputs, disk)
        sizes = (0, 1, 2, 3, 5, 8, 13)
        for number in pace.of(len(sizes), cost=2):
            torture.full(sizes[number] * PAGE, tallies[scenario.name])
        torture.read_only(tallies[scenario.name])


def test_as_much_was_tried_as_is_promised(tortures: Tortures, tallies: Tallies) -> None:
    """Last: what the tests above have found together."""
    assert sum(tally.kills for tally in tallies.values()) >= KILLS
    for name in tortures:
        points = tallies[name].points
        assert {"killed", "ENOSPC", "EIO", "really full", "really read-only"} <= points.keys(), name
