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
from tests.torture.scenarios import SCENARIOS, Scenario
from tests.torture.torture import Tally, Torture

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

Tallies: TypeAlias = defaultdict[str, Tally]
PAGE = 4096

each_scenario = pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)


@each_scenario
def test_a_kill_at_every_call(
    scenario: Scenario, server: Server, inputs: Path, tmp_path: Path, tallies: Tallies
) -> None:
    torture = Torture(scenario, server, inputs, tmp_path)
    for at in range(torture.calls):
        outcome = torture.point(KILLED, at, tallies[scenario.name])
        assert outcome.killed
        if outcome.writes:
            assert torture.point(TORN, at, tallies[scenario.name]).killed


@each_scenario
def test_an_error_at_every_call(
    scenario: Scenario, server: Server, inputs: Path, tmp_path: Path, tallies: Tallies
) -> None:
    torture = Torture(scenario, server, inputs, tmp_path)
    for at in range(torture.calls):
        for fault in (FULL, BROKEN_ONCE, (BROKEN, READ_ONLY)[at % 2]):
            torture.point(fault, at, tallies[scenario.name])


@each_scenario
def test_a_kill_of_a_program_that_was_started_anew(
    scenario: Scenario, server: Server, inputs: Path, tmp_path: Path, tallies: Tallies
) -> None:
    if scenario.command[0].startswith("@"):
        pytest.skip("the command line has no such command without a model to sample from")
    torture = Torture(scenario, server, inputs, tmp_path)
    assert torture.point(KILLED, torture.calls // 2, tallies[scenario.name], process=True).killed


@each_scenario
def test_short_writes_and_older_systems_are_no_hindrance(
    scenario: Scenario, server: Server, inputs: Path, tmp_path: Path
) -> None:
    torture = Torture(scenario, server, inputs, tmp_path)
    for oddity in (SHORT_WRITES, OLD_SYSTEM):
        work = torture.fresh()
        assert torture.run(scenario.command, work, oddity).code == 0
        assert torture.see(work) == torture.new


@each_scenario
def test_a_disk_that_is_really_full(
    scenario: Scenario, server: Server, inputs: Path, tmp_path: Path, tallies: Tallies
) -> None:
    with small_disk(tmp_path / "disk") as disk:
        torture = Torture(scenario, server, inputs, disk)
        for free in (0, 1, 2, 3, 5, 8, 13, 21, 34):
            torture.full(free * PAGE, tallies[scenario.name])


@each_scenario
def test_a_disk_that_turns_read_only(
    scenario: Scenario, server: Server, inputs: Path, tmp_path: Path, tallies: Tallies
) -> None:
    with small_disk(tmp_path / "disk") as disk:
        Torture(scenario, server, inputs, disk).read_only(tallies[scenario.name])
