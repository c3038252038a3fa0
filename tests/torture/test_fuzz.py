"""A hundred thousand damaged delta files and histories: each is refused by name, or read right."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from tests.torture.fuzz import fuzz_all, summary

SUMMARY = "RLFORGET_FUZZ_SUMMARY"
"""Names the file that the counts are written to, as JSON; without it they are only printed."""


def test_a_few_damaged_delta_files_and_histories() -> None:
    reports = fuzz_all(200, 30, processes=1)
    assert [report.failures for report in reports.values()] == [[], []]
    assert [report.outcomes.total() for report in reports.values()] == [200, 30]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_hundred_thousand_damaged_delta_files_and_histories() -> None:
    start = time.monotonic()
    reports = fuzz_all()
    text = json.dumps(summary(reports, time.monotonic() - start), indent=1)
    print(text)
    if os.environ.get(SUMMARY):
        Path(os.environ[SUMMARY]).write_text(text + "\n")
    assert not [failure for report in reports.values() for failure in report.failures[:5]]
    assert sum(report.outcomes.total() for report in reports.values()) >= 100_000
    assert all(report.outcomes["read"] > 1000 for report in reports.values())  # changes that change nothing of note
