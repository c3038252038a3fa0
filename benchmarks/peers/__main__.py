"""The command line: python -m benchmarks.peers; see benchmarks/README.md."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import environment
from benchmarks.checkpoint_pair import SHAPES, write_pair
from benchmarks.peers import merging, processes
from benchmarks.peers.page import write_page

PREFIX = "peers-"
for _size in tuple(SHAPES):  # two of its layers under a small vocabulary: whole decompositions take their time
    SHAPES[f"{_size}-slice"] = replace(SHAPES[_size], layers=2, vocabulary=4096)
IN_ONE_PROCESS = {"trim": "benchmarks.peers.trimming", "gram": "benchmarks.peers.grams"}
IN_ONE_PROCESS |= {"git-theta": "benchmarks.peers.git_theta"}


def run_module(module: str, python: str) -> dict[str, Any]:
    """Run a module that prints one line of JSON by another Python, and return that, or a `note` where it failed."""
    done = subprocess.run(
        [python, "-m", module],
        cwd=processes.ROOT,
        env=processes.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        return {"note": f"failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}"}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(size: str, python: Path, disk: Path, rounds: int, limit: float) -> dict[str, Any]:
    """Measure all jobs."""
    found: dict[str, Any] = {}
    for name, module in IN_ONE_PROCESS.items():
        sys.stderr.write(f"{name}\n")
        found[name] = run_module(module, str(python))
    disk.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="peers-", dir=disk))
    ours, theirs = Path(sys.executable).parent, python.parent
    try:
        for name, job, shape in (("merge", merging.added, size), ("lora", merging.extracted, f"{size}-slice")):
            sys.stderr.write(f"{name}, on a pair of {shape}\n")
            pair = folder / name
            write_pair(pair, shape)
            found[name] = {"size": shape, **job(pair, folder, ours, theirs, rounds, limit)}
            shutil.rmtree(pair)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return found


def main(arguments: list[str] | None = None) -> None:
    """Measure, write the results, and the tables of the page that are made from them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--peer-python", type=Path, help="the Python that has the peers; none: only write the page")
    parser.add_argument("--size", choices=SHAPES, default="0.5b")
    parser.add_argument("--rounds", type=int, default=2, help="how often each command runs; the best counts")
    parser.add_argument("--limit", type=float, default=1200, help="seconds for one command")
    parser.add_argument("--disk", type=Path, default=Path("runs"), help="a folder to work in")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--page", type=Path, default=Path("docs/comparison.md"))
    options = parser.parse_args(arguments)
    if options.peer_python is not None:
        found = measure(options.size, options.peer_python.absolute(), options.disk, options.rounds, options.limit)
        where = environment.describe(torch.device("cpu"))
        path = options.results / f"{PREFIX}{environment.slug(where)}.json"
        path.write_text(json.dumps({"environment": where, "peers": found}, indent=1) + "\n", encoding="utf-8")
    write_page(options.page, options.results)


if __name__ == "__main__":
    main()
