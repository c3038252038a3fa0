"""Ours or a released tool on a pair of checkpoints: how large, how fast, how much memory, and whether the bits survive.

Each runs in a process of its own, by `against_peers.py`, with the Python that has it:
`python -m benchmarks.delta_files.one_peer weightscope BEFORE AFTER WORK`, or `... weightscope --special` for the values
that a tool loses. It prints one line of JSON, and exits with code 3 where the tool is missing.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.delta_files.peers import PEERS, Peer, version
from benchmarks.delta_files.same_bits import same_bits, tensors_of
from benchmarks.delta_files.special_values import CASES, write_case
from benchmarks.memory import resident

NO_PEER = 3


def measure(peer: Peer, before: Path, after: Path, work: Path) -> dict[str, Any]:
    """Pack and unpack once, in temporary folders in `work`.

    Returns:
        `bytes` of the files, `seconds` of "pack" and "unpack", `peak_bytes` of this process and its children after
        both, `same`: whether every bit came back.
    """
    with tempfile.TemporaryDirectory(dir=work) as folder:
        patch, out = Path(folder, "patch"), Path(folder, "out")
        patch.mkdir()
        out.mkdir()
        start = time.perf_counter()
        peer.pack(before, after, patch)
        packed = time.perf_counter()
        peer.unpack(before, patch, out)
        unpacked = time.perf_counter()
        return {
            "bytes": sum(file.stat().st_size for file in patch.iterdir()),
            "seconds": {"pack": packed - start, "unpack": unpacked - packed},
            "peak_bytes": peak_of_all(),
            "same": same_bits(tensors_of(out), tensors_of(after)),
        }


def peak_of_all() -> int:
    """Peak resident memory of this process, or of its largest child where that took more, in bytes."""
    return max(resident("VmHWM"), 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)


def special(peer: Peer) -> dict[str, str]:
    """Tell, for each kind of value: "kept", "lost" (silently), or "refused" (an exception)."""
    found = {}
    for case in CASES:
        with tempfile.TemporaryDirectory() as work:
            before, after = write_case(Path(work), case)
            try:
                found[case] = "kept" if measure(peer, before, after, Path(work))["same"] else "lost"
            except Exception:  # whichever way a tool says no
                found[case] = "refused"
    return found


def main() -> None:
    """Print the measurement of one tool as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peer", choices=list(PEERS))
    parser.add_argument("folders", type=Path, nargs="*", help="before, after, and one to work in")
    parser.add_argument("--special", action="store_true", help="which values it loses, instead")
    options = parser.parse_args()
    peer = PEERS[options.peer]
    found = version(peer)
    if found is None:
        sys.exit(NO_PEER)
    with contextlib.redirect_stdout(io.StringIO()):  # some tools print
        measured = special(peer) if options.special else measure(peer, *options.folders)
    sys.stdout.write(json.dumps({"version": found, "measured": measured}) + "\n")


if __name__ == "__main__":
    main()
