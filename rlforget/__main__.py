"""`python -m rlforget`, and the console script `rlforget`."""

from __future__ import annotations

import importlib.util
import os
import sys

from rlforget.errors import missing_extra


def main() -> None:
    """Run the command line and exit with its code.

    0: done; 1: the input is at fault (one line on stderr); 2: wrong usage; 3: nothing to do, or differences found where
    `--exit-code` asks; 130: interrupted.
    """
    # Read when torch is loaded. On a machine that is busy, threads that spin while they wait are many times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if sys.platform == "win32":
        sys.exit("rlforget: expected Linux, or macOS for work on CPUs; found Windows. Use its subsystem for Linux.")
    for package in ("typer", "rich"):
        if importlib.util.find_spec(package) is None:
            sys.exit(f"rlforget: {missing_extra(package, 'cli')}")
    try:
        from rlforget.cli.app import app

        app(prog_name="rlforget")
    except KeyboardInterrupt:  # before a command began, or while it was ending
        sys.exit(130)


if __name__ == "__main__":
    main()
