"""A task vector trimmed to its largest entries, ours beside mergekit's mask: `benchmarks.cases.mergekit_trim`.

`python -m benchmarks.peers.trimming`, by the Python that has mergekit and numba, prints one line of JSON.
"""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version

import torch

from benchmarks.cases.mergekit_trim import CASES
from benchmarks.harness import Machine, Unavailable

ELEMENTS = 25_000_000
ROUNDS = 5


def main() -> None:
    """Measure each case in turns."""
    machine = Machine(torch.device("cpu"), ELEMENTS)
    found = {}
    for name, make in CASES.items():
        case = make(machine)
        theirs = case.peers["mergekit"]
        if isinstance(theirs, Unavailable) or not case.agree():
            sys.exit("mergekit is missing, or does not agree")
        seconds: dict[str, list[float]] = {"mergekit": [], "rlforget": []}
        for _ in range(ROUNDS):
            for tool, function in (("mergekit", theirs), ("rlforget", case.ours)):
                start = time.perf_counter()
                function()
                seconds[tool].append(time.perf_counter() - start)
        found[name] = {"elements": ELEMENTS, "seconds": {tool: min(times) for tool, times in seconds.items()}}
    sys.stdout.write(json.dumps({"versions": {"mergekit": version("mergekit")}, "cases": found}) + "\n")


if __name__ == "__main__":
    main()
