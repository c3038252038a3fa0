"""The command line: python -m benchmarks.delta_files [--large]; see benchmarks/README.md."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks import environment
from benchmarks.checkpoint_pair import SHAPES, write_pair
from benchmarks.delta_files import large, speeds
from benchmarks.delta_files.against_peers import run_peer
from benchmarks.delta_files.peers import PEERS

CHANGED = (0.0113, 0.03, 0.06, 0.9)
PEER_LIMIT = 60.0
PREFIX = "delta-files-"


def measure(size: str, rounds: int, disk: Path, memory: Path, peer_python: str) -> dict[str, Any]:
    """Measure everything but the large pair."""
    pairs, peers = [], {}
    for share in CHANGED:
        with _folder(disk) as folder, _folder(memory) as fast:
            _say(f"a pair of {size}, {share:.2%} changed")
            write_pair(folder, size, share)
            pairs.append({"size": size, "share": share} | speeds.measure(folder, fast, rounds))
            if share == CHANGED[0]:
                peers = _peers(folder, fast, peer_python)
    special = {name: run_peer(name, ["--special"], peer_python, PEER_LIMIT).get("measured", {}) for name in PEERS}
    return {"pairs": pairs, "peers": peers, "special": special}


def _peers(pair: Path, fast: Path, python: str) -> dict[str, Any]:
    """Measure ours and the peers on `pair`, and on a tiny one, which the slow ones too are done with in time."""
    found: dict[str, Any] = {}
    write_pair(pair / "tiny", "tiny", CHANGED[0])
    for name in PEERS:
        _say(name)
        found[name] = {
            size: run_peer(name, [str(folder / "before"), str(folder / "after"), str(fast)], python, PEER_LIMIT)
            for size, folder in (("pair", pair), ("tiny", pair / "tiny"))
        }
    return found


@contextmanager
def _folder(parent: Path) -> Iterator[Path]:
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="delta-files-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def main(arguments: list[str] | None = None) -> None:
    """Measure, and add what was measured to the day's results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.delta_files", description=__doc__)
    parser.add_argument("--size", choices=SHAPES, default="0.5b")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--disk", type=Path, default=Path("runs"), help="a folder on the disk to measure")
    parser.add_argument("--memory", type=Path, default=Path("/dev/shm"), help="a folder on a filesystem in memory")
    parser.add_argument(
        "--large", action="store_true", help="instead: memory on 16 GB and time on 4; needs 55 GB of disk"
    )
    parser.add_argument("--peer-python", default="", help="the Python that has the peers (default: this one)")
    parser.add_argument("--results", type=Path, help="folder for the results (default: none are written)")
    options = parser.parse_args(arguments)
    if options.large:
        found: dict[str, Any] = {}
        for part, measured in {"large": large.measure, "cached": large.measure_time}.items():
            with _folder(options.disk) as folder:
                _say(f"{part}: {(measured.__doc__ or '').splitlines()[0]}")
                found[part] = measured(folder)
    else:
        found = measure(options.size, options.rounds, options.disk, options.memory, options.peer_python)
    where = environment.describe(torch.device("cpu"))
    if options.results is None:
        sys.stdout.write(json.dumps(found, indent=1) + "\n")
        return
    path = options.results / f"{PREFIX}{environment.slug(where)}.json"
    before = json.loads(path.read_text(encoding="utf-8"))["delta_files"] if path.exists() else {}
    text = json.dumps({"environment": where, "delta_files": before | found}, indent=1)
    path.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
