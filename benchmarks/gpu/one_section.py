"""Measure one section in this process, and write each result when it is there: a process that is stopped loses one.

    python -m benchmarks.gpu.one_section model --until $(($(date +%s) + 100)) --out model.jsonl

Every line of the file is a JSON object: `environment`, the names of all `cases`, a `record`, or a case that was
`left_out` or `failed` and `why`.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import environment
from benchmarks.ceiling import copy_speed
from benchmarks.compiled import Compiled
from benchmarks.gpu.sections import SECTIONS
from benchmarks.harness import BUDGET, Case, Cases, Machine, Measurement
from benchmarks.time_limit import time_limit

ELEMENTS = {"cpu": 2**25, "cuda": 2**28}
QUICK_ELEMENTS = 2**12
COMPILING = 25.0  # seconds for a peer that takes longer to be compiled than all else takes

Emit = Callable[[dict[str, Any]], None]


def measure(cases: Cases, machine: Machine, deadline: float, emit: Emit) -> None:
    """Measure cases one after the other.

    Args:
        cases: What to measure.
        machine: Where.
        deadline: Of `time.monotonic`; a case that is not begun by then is left out.
        emit: Takes what there is to say of each.
    """
    for (operator, label), make in cases.items():
        name = {"operator": operator, "case": label}
        if time.monotonic() > deadline:
            emit({"left_out": name, "why": "no time was left"})
            continue
        try:
            emit({"record": name | _measured(make(machine), machine)})
        except Exception as fault:  # what one case cannot do must not keep the others from being measured
            traceback.print_exc()
            emit({"failed": name, "why": f"{type(fault).__name__}: {str(fault).strip()[:300]}"})
        gc.collect()
        if machine.device.type == "cuda":
            torch.cuda.empty_cache()


def _measured(case: Case, machine: Machine) -> dict[str, Any]:
    assert case.agree(), "ours and the peers give different results"
    if machine.quick:
        kept = {name: peer for name, peer in case.peers.items() if not isinstance(peer, Compiled)}
        case = dataclasses.replace(case, peers=kept)
    budget = 0.0 if machine.quick else BUDGET
    measurement = Measurement(case, machine.device, partial(time_limit, COMPILING), budget)
    measurement.run()
    return measurement.record()


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.one_section", description=__doc__.split("\n\n")[0])
    parser.add_argument("section", choices=SECTIONS)
    parser.add_argument("--device", choices=ELEMENTS, default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, and no compiler")
    parser.add_argument("--elements", type=int, help="coordinates of the operators' tensors")
    parser.add_argument(
        "--until", type=float, required=True, help="when no case may be running any more, `time.time()`"
    )
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    deadline = time.monotonic() + options.until - time.time()
    elements = options.elements or (QUICK_ELEMENTS if options.quick else ELEMENTS[options.device])
    machine = Machine(torch.device(options.device), elements, options.quick)
    with open(options.out, "w", encoding="utf-8") as file:

        def emit(line: dict[str, Any]) -> None:
            file.write(json.dumps(line) + "\n")
            file.flush()

        found = environment.describe(machine.device) | {"elements": elements}
        moved = 1 << (24 if options.quick else 33)
        emit({"environment": found | {"copy_bytes_per_second": copy_speed(machine.device, moved)}})
        cases = SECTIONS[options.section].cases()
        emit({"cases": [{"operator": operator, "case": label} for operator, label in cases]})
        measure(cases, machine, deadline, emit)


if __name__ == "__main__":
    main()
