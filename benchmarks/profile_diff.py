"""Where the time of one whole `rf.diff` of two checkpoint folders goes, from file to delta.

    python -m benchmarks.profile_diff runs/pair-0.5b

The files are in the page cache, as after a download or a training run; a disk is not measured. In turns are timed:

- the whole `diff`, by itself;
- another one, each operator of which is timed as torch dispatches it: that takes time itself, but outside operators;
- what `diff` must do at least: read every byte of fresh memory maps of the same files, which maps their pages and moves
  their bytes, and does nothing else.

What operators take in the second, taken off the first, leaves all else.
"""

from __future__ import annotations

import argparse
import gc
import json
import mmap
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import rlforget as rf
from benchmarks.ceiling import xor_all

ROUNDS = 7
OURS = "rlforget."


class OperatorTimes(TorchDispatchMode):
    """Adds up, while active, the seconds of each operator that torch dispatches.

    Attributes:
        seconds: {operator: seconds}; what an operator calls inside counts as its own.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seconds: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        start = time.perf_counter()
        result = func(*args, **(kwargs or {}))
        self.seconds[str(func).removesuffix(".default")] += time.perf_counter() - start
        return result


def profile(before: Path, after: Path, rounds: int = ROUNDS) -> dict[str, Any]:
    """Time `rf.diff` and, in turns with it, bare reads of the same files.

    Returns:
        bytes: Of both checkpoints.
        changed, coordinates: Of the delta.
        seconds: "diff", the best of all rounds, nothing inside it timed; "watched diff", the best with operators timed;
            "fresh read", a pass over new maps of the files; "read", a second pass over the same maps, their pages known
            by then.
        parts: Seconds of each of our operators, and of torch's own together ("torch"): of each the best of the rounds
            in which they are timed. And what is left of "diff" ("rest": Python, opening files).
    """
    files = [file for folder in (before, after) for file in sorted(folder.glob("*.safetensors"))]
    delta = rf.diff(before, after)  # compiles, or reads the compiled code from disk
    whole, watched, fresh, again = [], [], [], []
    parts: dict[str, float] = {}
    for _ in range(rounds):
        first, second = _read_twice(files)
        fresh.append(first)
        again.append(second)
        whole.append(_diff_once(before, after))
        with OperatorTimes() as times:
            watched.append(_diff_once(before, after))
        parts = {name: min(taken, parts.get(name, taken)) for name, taken in _parts(times.seconds).items()}
    return {
        "bytes": sum(file.stat().st_size for file in files),
        "coordinates": delta.numel,
        "changed": delta.changed,
        "tensors": len(delta),
        "threads": torch.get_num_threads(),
        "seconds": {
            "diff": min(whole),
            "watched diff": min(watched),
            "fresh read": min(fresh),
            "read": min(again),
        },
        "parts": parts | {"rest": min(whole) - sum(parts.values())},
    }


def _diff_once(before: Path, after: Path) -> float:
    """Return the seconds of one `rf.diff`; what it returned is freed after that."""
    gc.collect()
    start = time.perf_counter()
    delta = rf.diff(before, after)
    taken = time.perf_counter() - start
    del delta
    return taken


def _parts(operators: Mapping[str, float]) -> dict[str, float]:
    """Return the seconds of each of our operators, and of all others together."""
    ours = {name: seconds for name, seconds in operators.items() if name.startswith(OURS)}
    parts = {name.removeprefix(OURS): seconds for name, seconds in ours.items()}
    return parts | {"torch": sum(operators.values()) - sum(ours.values())}


def _read_twice(files: list[Path]) -> tuple[float, float]:
    """Return the seconds of a pass over fresh maps of `files`, and of one more pass over the same maps."""
    maps = []
    for file in files:
        with open(file, "rb") as opened:
            maps.append(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ))
    arrays = [np.frombuffer(mapped, np.int64, len(mapped) // 8) for mapped in maps]
    first, second = (_seconds(lambda: [xor_all(words) for words in arrays]) for _ in range(2))
    arrays.clear()
    for mapped in maps:
        mapped.close()
    return first, second


def _seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile_diff", description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path, help="holds before/ and after/, as benchmarks.checkpoint_pair writes them")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args(arguments)
    found = profile(options.folder / "before", options.folder / "after", options.rounds)
    sys.stdout.write(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
