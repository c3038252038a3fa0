"""Damaged delta files and histories, all of them: a table of what became of each kind of damage, and the counts.

    python -m tests.torture.fuzz --files 90000 --histories 12000 --seed 0 --out benchmarks/results/fuzz.json

With NUMBA_BOUNDSCHECK=1 in the environment, and NUMBA_CACHE_DIR at an empty folder, every access of a compiled kernel
is checked too.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from tests.torture.fuzz_delta_files import DeltaFiles
from tests.torture.fuzz_history import Histories
from tests.torture.fuzzing import Report, Target, run

FILES, HISTORIES = 90_000, 12_000
SECONDS = 570.0
"""After which no further try is made."""

_KINDS: dict[str, type[Target]] = {"delta files": DeltaFiles, "histories": Histories}


def fuzz_all(files: int = FILES, histories: int = HISTORIES, *, seed: int = 0, processes: int = 2) -> dict[str, Report]:
    """Try as many of each as time allows."""
    counts: dict[type[Target], int] = {DeltaFiles: files, Histories: histories}
    reports = run(counts, seed=seed, processes=processes, seconds=SECONDS)
    return {name: reports[kind] for name, kind in _KINDS.items()}


def summary(reports: dict[str, Report], seconds: float) -> dict[str, Any]:
    """Return the counts, ready for JSON."""
    kinds = {
        name: {
            "tried": report.outcomes.total(),
            **{outcome: report.outcomes[outcome] for outcome in ("refused", "read", "failed")},
            "slowest_seconds": round(report.slowest, 2),
            "memory_mib": report.memory >> 20,
            "changes": {
                change: {outcome: report.by_change[change, outcome] for outcome in ("refused", "read", "failed")}
                for change in _KINDS[name].changes
            },
        }
        for name, report in reports.items()
    }
    failures = [failure for report in reports.values() for failure in report.failures]
    tried = sum(report.outcomes.total() for report in reports.values())
    return {"tried": tried, "failures": len(failures), "seconds": round(seconds), **kinds}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture.fuzz")
    parser.add_argument("--files", type=int, default=FILES)
    parser.add_argument("--histories", type=int, default=HISTORIES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, help="where to write the counts as JSON")
    options = parser.parse_args(arguments)
    start = time.monotonic()
    reports = fuzz_all(options.files, options.histories, seed=options.seed, processes=options.processes)
    found = summary(reports, time.monotonic() - start)
    print(json.dumps(found, indent=1))
    if options.out is not None:
        options.out.write_text(json.dumps(found, indent=1) + "\n")
    for failure in [failure for report in reports.values() for failure in report.failures][:20]:
        print(failure)
    return 1 if found["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
