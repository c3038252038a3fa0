"""The command line: python -m benchmarks.monitor [cost|guards]; prints JSON, and writes it with --results."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks import environment
from benchmarks.monitor import cost, guards

# Earlier and later domain, method, steps and learning rate of the later one: an ordinary loss, a deep one, and SFT.
PAIRS = (
    ("math", "writing", "grpo", 100, 2e-3),
    ("code", "writing", "grpo", 200, 5e-3),
    ("code", "writing", "sft", 60, 2e-3),
)


def main(arguments: list[str] | None = None) -> None:
    """Measure, and add what was measured to the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.monitor", description=__doc__)
    parser.add_argument("part", choices=["cost", "guards"])
    parser.add_argument("--seeds", type=int, default=3, help="of the guards")
    parser.add_argument("--fast", action="store_true", help="a few steps of each, to see that it runs")
    parser.add_argument("--results", type=Path, help="a JSON file to add to (default: print)")
    options = parser.parse_args(arguments)
    found: list[dict[str, Any]] = []
    if options.part == "cost":
        for size in ("0.2M",) if options.fast else ("0.2M", "4M"):
            for method in ("sft", "grpo"):
                found.append(cost.measure(size, method, 20 if options.fast else 60))
    else:
        for seed in range(1 if options.fast else options.seeds):
            for earlier, later, method, steps, rate in PAIRS[:1] if options.fast else PAIRS:
                count, taken = (16, 4) if options.fast else (256, steps)
                found.append(guards.measure(earlier, later, method, taken, rate, seed, count=count))
                sys.stderr.write(f"{json.dumps(found[-1])}\n")
    where = environment.describe(torch.device("cpu"))
    if options.results is None:
        sys.stdout.write(json.dumps(found, indent=1) + "\n")
        return
    held = json.loads(options.results.read_text(encoding="utf-8")) if options.results.exists() else {}
    held[options.part] = {"environment": where, "rows": found}
    options.results.write_text(json.dumps(held, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
