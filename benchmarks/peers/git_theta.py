"""What git-theta's sparse update makes of the values that a change easily loses, and of a changed tensor's size.

`python -m benchmarks.peers.git_theta`, by the Python that has git-theta, prints one line of JSON. The update is made,
serialised, read back and applied by git-theta's own classes; git and git-lfs, which carry the bytes, are left out.
"""

from __future__ import annotations

import asyncio
import io
import json
import sys
import time
from importlib.metadata import version
from typing import Any

import numpy as np

SHAPE, CHANGED = (2048, 2048), 0.0114


def main() -> None:
    """Measure."""
    import torch

    from benchmarks.delta_files.special_values import CASES

    wide = {
        f"{name}, in float32": tuple(side.float() for side in sides)
        for name, sides in CASES.items()
        if sides[0] is not None and sides[0].dtype == torch.bfloat16 and "float32" not in name
    }
    special = {name: fate(before, after) for name, (before, after) in (CASES | wide).items()}
    found = {"versions": {"git-theta": version("git-theta")}, "special": special, "float32": sizes()}
    sys.stdout.write(json.dumps(found) + "\n")


def through(before: Any, after: Any) -> tuple[Any, int]:
    """Return what comes back, and how many bytes travelled."""
    from git_theta import params
    from git_theta.updates.sparse import SparseUpdate

    update = SparseUpdate(params.get_update_serializer())

    async def go() -> tuple[Any, int]:
        data = await update.serializer.serialize(await update.calculate_update(after.copy(), before))
        return await update.apply_update(await update.serializer.deserialize(data), before), len(data)

    return asyncio.run(go())


def fate(before: Any, after: Any) -> str:
    """Tell whether a kind of value is "kept", "lost" (silently) or "refused" (an exception)."""
    from git_theta.checkpoints.safetensors_checkpoint import SafeTensorsCheckpoint
    from safetensors.torch import save

    if before is None or after is None:
        return "kept"  # a tensor that comes is stored densely, and one that goes is no more in the list
    try:
        old, new = (SafeTensorsCheckpoint.load(io.BytesIO(save({"case": side})))["case"] for side in (before, after))
        back, _ = through(old, new)
    except Exception:  # whichever way it says no
        return "refused"
    same = (back.dtype, back.shape) == (new.dtype, new.shape) and back.tobytes() == new.tobytes()
    return "kept" if same else "lost"


def sizes() -> dict[str, Any]:
    """Change a share of a float32 matrix: the bytes a change, the seconds, and how many coordinates come back wrong."""
    random = np.random.default_rng(0)
    before = random.normal(0, 0.02, SHAPE).astype(np.float32)
    moved = random.random(SHAPE) < CHANGED
    after = np.where(moved, before + random.normal(0, 1e-5, SHAPE).astype(np.float32), before)
    start = time.perf_counter()
    back, size = through(before, after)
    changed = int((before.view(np.int32) != after.view(np.int32)).sum())
    wrong = int((back.view(np.int32) != after.view(np.int32)).sum())
    return {"changed": changed, "bytes": size, "seconds": time.perf_counter() - start, "wrong": wrong}


if __name__ == "__main__":
    main()
