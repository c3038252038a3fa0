"""Every command that writes, cut short at every call that does: what is found then is the old or the new, whole."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
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
InTime: TypeAlias = Callable[[], None]
PAGE = 4096

each_scenario = pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)


@each_scenario
def test_a_kill_at_every_call(
    scenario: Scenario, server: Server, inputs: Path, tmp_path: Path, tallies: Tallies, in_time: InTime
) -> None:
    torture = Torture(scenario, server, inputs, tmp_path)
    for at in range(torture.calls):
        in_time()
        outcome = torture.point(KILLED, at, tallies[scenario.name])
        assert outcome.killed
        if outcome.writes:
            assert torture.point(TORN, at, tallies[scenario.name]).killed


@pytest.mark.parametrize("kind", dict.fromkeys(scenario.kind for scenario in SCENARIOS))
def test_a_kill_of_a_program_that_was_started_anew(
    kind: str, server: Server, inputs: Path, tmp_path: Path, tallies: Tallies, in_time: InTime
) -> None:
    in_time()
    scenario = next(scenario for scenario in SCENARIOS if scenario.kind == kind)
    torture = Torture(scenario, server, inputs, tmp_path)
    assert torture.point(KILLED, torture.calls // 2, tallies[scenario.name], process=True).killed


@each_scenario
def test_an_error_at_every_call(
    scenario: Scenario, server: Server, inputs: Path, tmp_path: Path, tallies: Tallies, in_time: InTime
) -> None:
    torture = Torture(scenario, server, inputs, tmp_path)
    for at in range(torture.calls):
        # Two of the four at each call, each of them at every other call.
        for fault in ((FULL, BROKEN_ONCE), (READ_ONLY, BROKEN))[at % 2]:
            in_time()
            torture.point(fault, at, tallies[scenario.name])


@each_scenario
def test_short_writes_and_older_systems_are_no_hindrance(
    scenario: Scenario, server: Server, inputs: Path, tmp_path: Path, in_time: InTime
) -> None:
    in_time()
    torture = Torture(scenario, server, inputs, tmp_path)
    for oddity in (SHORT_WRITES, OLD_SYSTEM):
        work = torture.fresh()
        assert torture.run(scenario.command, work, oddity).code == 0
        assert torture.see(work) == torture.new


@each_scenario
def test_a_small_disk_that_is_really_full_or_read_only(
    scenario: Scenario, server: Server, inputs: Path, tmp_path: Path, tallies: Tallies, in_time: InTime
) -> None:
    with small_disk(tmp_path / "disk") as disk:
        in_time()
        torture = Torture(scenario, server, inputs, disk)
        for pages in (0, 1, 2, 3, 5, 8, 13):
            in_time()
            torture.full(pages * PAGE, tallies[scenario.name])
        torture.read_only(tallies[scenario.name])
