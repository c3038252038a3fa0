"""The command line: python -m benchmarks.report [JSON ...]."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.report.page import PICTURE, page
from benchmarks.report.results import FOLDER, newest, read_all
from benchmarks.report.roofline import draw


def main(arguments: list[str] | None = None) -> int:
    """Write the page and its picture."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("results", type=Path, nargs="*", help=f"default: the newest of each machine in {FOLDER}")
    parser.add_argument("--out", type=Path, default=Path("docs/performance.md"))
    options = parser.parse_args(arguments)
    every = read_all(options.results or newest())
    if not every:
        sys.stderr.write(f"report: expected results in {FOLDER}; found none. Make them with `make bench`.\n")
        return 1
    options.out.write_text(page(every, newest(delta_files=True)), encoding="utf-8")
    draw(every, options.out.parent / PICTURE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
