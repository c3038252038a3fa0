"""Results made up for the page's tests."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

RECORD: dict[str, Any] = {
    "operator": "sparse_delta",
    "case": "bfloat16, 0.2% changed",
    "device": "cpu",
    "ceiling": "read",
    "moved": 200_000_000,
    "ceiling_moved": 200_000_000,
    "inputs": 200_000_000,
    "flops": 0,
    "rounds": 9,
    "seconds": {"ours": 0.005, "ceiling": 0.0045, "torch": 0.05, "torch.compile": 0.04},
    "extra_bytes": {"ours": 3 << 20, "torch": 90 << 20, "torch.compile": None},
    "notes": {"torch.compile": "1 graph break (dynamic shape operator)"},
}

MADE: dict[str, Any] = {
    "environment": {
        "device": "cpu",
        "cpu": "Some Processor",
        "cores": 2,
        "memory_bytes": 24 << 30,
        "system": "Linux x86_64",
        "threads": 2,
        "versions": {"python": "3.11.7", "torch": "2.13.0", "mergekit": None},
        "date": "2026-01-31",
        "elements": 50_000_000,
    },
    "operators": [RECORD],
    "diff": {
        "size": "0.5b",
        "bytes": 2_000_000_000,
        "coordinates": 500_000_000,
        "changed": 5_000_000,
        "tensors": 290,
        "threads": 2,
        "seconds": {"diff": 0.1, "watched diff": 0.11, "fresh read": 0.05, "read": 0.04},
        "parts": {"sparse_delta": 0.06, "fingerprint": 0.03, "torch": 0.004, "rest": 0.006},
    },
    "calls": {"start": 1.0, "first": 9.0, "second": 2.0},
}


GPU: dict[str, Any] = {
    "device": "cuda",
    "gpu": "Some GPU",
    "gpu_memory_bytes": 80 << 30,
    "compute_capability": "9.0",
    "cuda": "13.0",
    "driver": "580.1",
    "copy_bytes_per_second": 4.2e12,
}
"""What the environment of a GPU says besides."""

STEP: dict[str, Any] = RECORD | {
    "operator": "model",
    "case": "diff and stats",
    "section": "model",
    "device": "cuda",
    "moved": 24_000_000_000,
    "seconds": {"ours": 0.007, "ceiling": 0.0056, "torch": 0.14, "torch.compile": 0.07},
    "extra_bytes": {"ours": 1 << 30},
    "peak_bytes": {"ours": 20 << 30, "torch": 30 << 30},
    "notes": {},
}


def written_of_a_gpu(folder: Path, model: list[dict[str, Any]], left_out: list[dict[str, str]]) -> Path:
    """Write a file of results of the suite for a GPU, with the section "model" alone."""
    environment = MADE["environment"] | GPU
    sections = {"model": {"seconds": 61.4, "left_out": left_out, "failed": []}}
    path = folder / "gpu.json"
    path.write_text(json.dumps({"environment": environment, "model": model, "sections": sections}))
    return path


def changed(**changes: Any) -> dict[str, Any]:
    """The record with other values."""
    return copy.deepcopy(RECORD) | changes


def written(folder: Path, name: str = "made.json", operators: list[dict[str, Any]] | None = None, **other: Any) -> Path:
    """Write a file of results, other values in its environment."""
    made = copy.deepcopy(MADE)
    made["environment"] |= other
    if operators is not None:
        made["operators"] = operators
    path = folder / name
    path.write_text(json.dumps(made))
    return path
