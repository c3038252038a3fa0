"""Measure what one GPU does, in less than nine minutes: python -m benchmarks.gpu [SECTION ...]

Each section runs in a process of its own: one that fails, or is stopped at the end of its time, leaves the others what
they measured, and loses of its own what was not measured yet. What was left out is named in the results.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import environment
from benchmarks.gpu.sections import SECTIONS, TOTAL

_ENDING = 5.0  # seconds at the end of a section's time in which no case is begun


def run(sections: Sequence[str], seconds: float, flags: Sequence[str], results: Path) -> tuple[Path, bool]:
    """Run sections one after the other, and write what is known after each.

    Args:
        sections: Their names.
        seconds: For all of them.
        flags: For `benchmarks.gpu.one_section`.
        results: The folder to write to.

    Returns:
        The file, and whether all cases that were begun came to their end.
    """
    end = time.monotonic() + seconds
    path: Path | None = None
    well = True
    for position, name in enumerate(sections):
        share = SECTIONS[name].seconds / sum(SECTIONS[other].seconds for other in sections[position:])
        found = _section(name, share * (end - time.monotonic()), flags)
        path = _written(results, name, found) or path
        well = well and not found["failed"]
        sys.stdout.write(_summary(name, found))
        sys.stdout.flush()
    if path is None:
        raise SystemExit("bench-gpu: no section got as far as to tell the device")
    return path, well


def _section(name: str, seconds: float, flags: Sequence[str]) -> dict[str, Any]:
    """Run one section, and read what it wrote."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "lines.jsonl"
        until = time.time() + seconds - _ENDING
        command = [sys.executable, "-m", "benchmarks.gpu.one_section", name]
        command += ["--until", str(until), "--out", str(out), *flags]
        process = subprocess.Popen(command, start_new_session=True)
        try:
            code = process.wait(max(1.0, seconds))
            ended = "" if code == 0 else f"ended with code {code}"
        except subprocess.TimeoutExpired:
            ended = f"stopped after {seconds:.0f} s"
        finally:
            if process.poll() is None:  # with the compiler's workers
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        text = out.read_text(encoding="utf-8") if out.exists() else ""
    whole, _, _ = text.rpartition("\n")  # a process that is stopped may leave part of a line
    return _gathered([json.loads(line) for line in whole.splitlines()], ended) | {"seconds": time.monotonic() - start}


def _gathered(lines: Sequence[dict[str, Any]], ended: str) -> dict[str, Any]:
    """Sort the lines of a section, and name the cases that it did not come to."""
    found: dict[str, Any] = {"environment": None, "records": [], "left_out": [], "failed": []}
    waiting: list[dict[str, str]] = []
    for line in lines:
        if "environment" in line:
            found["environment"] = line["environment"]
        elif "cases" in line:
            waiting = line["cases"]
        elif "record" in line:
            found["records"].append(line["record"])
            waiting = waiting[1:]
        else:
            (kind,) = {"left_out", "failed"} & set(line)
            found[kind].append(line[kind] | {"why": line["why"]})
            waiting = waiting[1:]
    if ended:
        stopped = ended.startswith("stopped")
        found["left_out" if stopped else "failed"] += [case | {"why": ended} for case in waiting]
        if not waiting:
            found["failed"].append({"operator": "", "case": "", "why": ended})
    return found


def _written(results: Path, section: str, found: dict[str, Any]) -> Path | None:
    """Put a section into the file of this device and day, in place of what was there of it."""
    if found["environment"] is None:
        return None
    path = results / f"{environment.slug(found['environment'])}.json"
    whole = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    part = "operators" if section == "operators" else "model"
    kept = [record for record in whole.get(part, []) if record["section"] != section]
    whole["environment"] = found["environment"]
    whole[part] = kept + [record | {"section": section} for record in found["records"]]
    whole.setdefault("sections", {})[section] = {name: found[name] for name in ("seconds", "left_out", "failed")}
    results.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    return path


def _summary(name: str, found: dict[str, Any]) -> str:
    lines = [f"{name}: {len(found['records'])} cases in {found['seconds']:.0f} s"]
    for record in found["records"]:
        seconds = record["seconds"]
        times = ", ".join(
            f"{peer} {seconds[peer] / seconds['ours']:.1f}×" for peer in seconds if peer not in ("ours", "ceiling")
        )
        lines.append(f"  {record['operator']}, {record['case']}: {1e3 * seconds['ours']:.2f} ms; {times or 'no peer'}")
    for kind, says in (("left_out", "left out"), ("failed", "failed")):
        lines += [f"  {says}: {one['operator']}, {one['case']}: {one['why']}" for one in found[kind]]
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("section", nargs="*", help=f"of {', '.join(SECTIONS)} (default: all)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, and no compiler: whether all of it runs")
    parser.add_argument("--elements", type=int, help="coordinates of the operators' tensors (default: 2**28 on a GPU)")
    parser.add_argument("--seconds", type=float, default=TOTAL, help="for all sections (default: %(default)s)")
    parser.add_argument("--results", type=Path, help="default: benchmarks/results; quick, runs/bench-gpu")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.section if name not in SECTIONS]
    if unknown:
        parser.error(f"section: expected one of {', '.join(SECTIONS)}; found {unknown[0]!r}")
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.stderr.write(
            "bench-gpu: expected a CUDA device; torch finds none. Run it on a machine with an NVIDIA GPU.\n"
        )
        return 1
    flags = ["--device", options.device, *["--quick"][: options.quick]]
    flags += [] if options.elements is None else ["--elements", str(options.elements)]
    results = options.results or Path("runs/bench-gpu" if options.quick else "benchmarks/results")
    path, well = run(options.section or list(SECTIONS), options.seconds, flags, results)
    sys.stdout.write(f"{path}\n")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
