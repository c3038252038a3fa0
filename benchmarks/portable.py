"""`sparse_delta` as a processor without AVX-512 runs it: in a process for which numba compiles for such a one.

    python -m benchmarks.portable --elements 33554432

The ceiling and torch's own operators are timed there too; torch takes what instructions there are.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.cases.sparse_delta import CASES
from benchmarks.harness import Machine, Measurement
from rlforget_kernels.common.cpu_vectors import can_compress

ROOT = Path(__file__).parents[1]
OPERATOR = "sparse_delta"
SUFFIX = ", without AVX-512"
LABELS = {f"{label}{SUFFIX}": label for label in ("bfloat16, 0.2% changed", "bfloat16, 5% changed")}
PROCESSOR = "haswell"  # AVX2, of 2013


def applies() -> bool:
    """Whether numba can compile for that processor here."""
    return platform.machine().lower() in ("x86_64", "amd64")


def measure(machine: Machine, cache: Path) -> list[dict[str, Any]]:
    """Measure every case in another process.

    Args:
        machine: The CPU, and the size of the tensors; if it is quick, agreement alone is checked.
        cache: A folder for the compiled code.

    Returns:
        Records as `Measurement.record` gives them, with the operator's and the case's name; of a quick machine none.
    """
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    compiling = {"NUMBA_CPU_NAME": PROCESSOR, "NUMBA_CPU_FEATURES": "", "NUMBA_CACHE_DIR": str(cache)}
    command = [sys.executable, "-m", "benchmarks.portable", "--elements", str(machine.elements)]
    command += ["--threads", str(torch.get_num_threads()), *["--quick"] * machine.quick]
    done = subprocess.run(
        command, env=os.environ | compiling | {"PYTHONPATH": path}, check=True, stdout=subprocess.PIPE, text=True
    )
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def main(arguments: list[str] | None = None) -> None:
    """Run the command line: measure in this process, and write records as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.portable", description=__doc__.split("\n\n")[0])
    parser.add_argument("--elements", type=int, required=True, help="coordinates a tensor")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="whether all agree, no time taken")
    options = parser.parse_args(arguments)
    if can_compress():
        parser.error(f"numba compiles for AVX-512 here; expected NUMBA_CPU_NAME={PROCESSOR} in the environment")
    torch.set_num_threads(options.threads)
    machine = Machine(torch.device("cpu"), options.elements, options.quick)
    records = []
    for label, of in LABELS.items():
        case = CASES[of](machine)
        assert case.agree(), "ours and torch give different results"
        if machine.quick:
            continue
        measurement = Measurement(case, machine.device)
        measurement.run()
        records.append({"operator": OPERATOR, "case": label} | measurement.record())
    sys.stdout.write(json.dumps(records) + "\n")


if __name__ == "__main__":
    main()
