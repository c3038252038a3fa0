"""Run `rlforget` and then write the peak of this process's resident memory, in bytes, on stderr."""

from __future__ import annotations

import sys

from benchmarks.memory import resident
from rlforget.__main__ import main

if __name__ == "__main__":
    try:
        main()
    finally:
        sys.stderr.write(f"\n{resident('VmHWM')}\n")
