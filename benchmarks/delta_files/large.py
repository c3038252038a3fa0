"""Peak memory and time of the command line on a pair of checkpoints of several GB, with tensors of 2 GB.

`rlforget` runs in processes of its own; the kernel's high-water mark of their resident memory is what counts.
"""

from __future__ import annotations

import filecmp
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.checkpoint_pair import DEVIATION, amplitude, moved
from benchmarks.checkpoint_pair import write_pair as write_tiny_pair
from benchmarks.delta_files import least
from rlforget.weights import TensorMeta, save_checkpoint
from rlforget.weights.safetensors_file import header_text

ROOT = Path(__file__).parents[2]
SHAPE = (31_250, 32_000)  # 2 GB in bfloat16
TENSORS_A_SHARD = 2
_BLOCK = 25_000_000  # coordinates: what is drawn once and then rolled, so that writing takes no longer than the disk


def write_pair(folder: Path, tensors: int, changed: float) -> None:
    """Write `folder/before` and `folder/after`, of that many tensors of 2 GB."""
    generator = torch.Generator().manual_seed(0)
    before = torch.empty(_BLOCK).normal_(0, DEVIATION, generator=generator).bfloat16()
    blocks = {"before": before, "after": moved(before, amplitude(changed), generator)}
    names = [f"model.layers.{number}.weight" for number in range(tensors)]
    shards = [names[first : first + TENSORS_A_SHARD] for first in range(0, tensors, TENSORS_A_SHARD)]
    for side, block in blocks.items():
        (folder / side).mkdir(parents=True)
        (folder / side / "config.json").write_text("{}")
        weight_map = {}
        for number, shard in enumerate(shards):
            file = f"model-{number:05d}.safetensors"
            _write_shard(folder / side / file, shard, block, number)
            weight_map |= dict.fromkeys(shard, file)
        (folder / side / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def _write_shard(path: Path, names: list[str], block: Tensor, seed: int) -> None:
    with open(path, "wb") as file:
        text, order = header_text({name: TensorMeta(torch.bfloat16, SHAPE) for name in names}, {})
        file.write(text)
        for number in range(len(order)):
            for part in _rolled(block, seed * len(names) + number):
                file.write(part.view(torch.uint8).numpy().data)


def _rolled(block: Tensor, seed: int) -> Iterator[Tensor]:
    for part in range(SHAPE[0] * SHAPE[1] // _BLOCK):
        yield block.roll(1009 * (40 * seed + part))


def measure(folder: Path, tensors: int = 8, changed: float = 0.0113) -> dict[str, Any]:
    """Write a pair into `folder` and run every command that takes a checkpoint of any size; one output at a time.

    Returns:
        Sizes; seconds and peak bytes of each command.
    """
    write_pair(folder, tensors, changed)
    os.sync()
    before, after, delta = folder / "before", folder / "after", folder / "large.delta.safetensors"
    same_as = {"applied": after, "reverted": before, "checked-out": after}
    found: dict[str, Any] = {}
    for name, command in _commands(folder).items():
        found[name] = _run(command)
        for made in _OUTPUTS:
            if (folder / made).exists():
                assert made not in same_as or _same_files(folder / made, same_as[made])
        _clear(folder)
    shutil.rmtree(after)  # its room is needed
    found |= _chunked(before, delta, folder)
    return _sizes(before, delta) | {"commands": found}


def measure_time(folder: Path, tensors: int = 2, changed: float = 0.0113, rounds: int = 3) -> dict[str, Any]:
    """Run the commands on a pair that the page cache has room for, beside the least they could take.

    Returns:
        Sizes; best seconds of each command, and on a tiny pair, which is what starting takes; `parts`: seconds of what
        they cannot do without; see `least`.
    """
    write_pair(folder, tensors, changed)
    tiny = folder / "tiny"
    write_tiny_pair(tiny, "tiny", changed)
    os.sync()
    delta = folder / "large.delta.safetensors"
    seconds: dict[str, dict[str, list[float]]] = {"commands": {}, "start": {}}
    parts: list[dict[str, float]] = []
    for _ in range(rounds):
        for place, times in ((tiny, seconds["start"]), (folder, seconds["commands"])):
            for name, command in _commands(place).items():
                times.setdefault(name, []).append(_run(command)["seconds"])
                _clear(place)
            shutil.rmtree(place / "history")
        parts.append(least.measure(folder / "before", folder / "after", delta, folder / "scratch"))
    best = {what: {name: min(times) for name, times in one.items()} for what, one in seconds.items()}
    return (
        _sizes(folder / "before", delta)
        | best
        | {"parts": {part: min(one[part] for one in parts) for part in parts[0]}}
    )


_OUTPUTS = ("applied", "reverted", "rolled-back", "checked-out")


def _commands(folder: Path) -> dict[str, list[str]]:
    """Return what is run on a pair, in an order in which each finds what it needs."""
    before, after, delta, history = (
        folder / name for name in ("before", "after", "large.delta.safetensors", "history")
    )
    applied, reverted, rolled_back, checked_out = (folder / name for name in _OUTPUTS)
    commands = {
        "diff": ["diff", before, after, "-o", delta, "--force"],
        "diff for statistics alone": ["diff", before, after],
        "apply": ["apply", before, delta, "-o", applied],
        "revert": ["revert", after, delta, "-o", reverted],
        "rollback of 2% of all": ["rollback", after, delta, "--rule", "magnitude", "-o", rolled_back],
        "verify": ["verify", after],
        "init": ["init", before, "-H", history],
        "commit": ["commit", delta, "-H", history, "-m", "large"],
        "verify of the history": ["verify", "-H", history],
        "checkout": ["checkout", "HEAD", "-H", history, "-o", checked_out],
    }
    return {name: [str(part) for part in command] for name, command in commands.items()}


def _clear(folder: Path) -> None:
    for made in _OUTPUTS:
        shutil.rmtree(folder / made, ignore_errors=True)


def _sizes(before: Path, delta: Path) -> dict[str, int]:
    return {
        "model_bytes": sum(file.stat().st_size for file in before.glob("*.safetensors")),
        "tensor_bytes": 2 * SHAPE[0] * SHAPE[1],
        "delta_bytes": delta.stat().st_size,
    }


def _chunked(before: Path, delta: Path, folder: Path) -> dict[str, Any]:
    """Measure the same on a folder of torch.distributed.checkpoint, made of the checkpoint before."""
    base, out = folder / "chunked", folder / "chunked-out"
    save_checkpoint(base, before, distributed=True)
    found = {}
    for name, command in {
        "diff of a DCP folder": ["diff", before, base],
        "verify of a DCP folder": ["verify", base],
        "apply to a DCP folder": ["apply", base, delta, "-o", out],
    }.items():
        found[name] = _run([str(part) for part in command])
    return found


def _run(command: list[str]) -> dict[str, float]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.delta_files.peak", *command],
        env=os.environ | {"PYTHONPATH": path},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return {"seconds": time.perf_counter() - start, "peak_bytes": int(done.stderr.splitlines()[-1])}


def _same_files(one: Path, other: Path) -> bool:
    names = [file.name for file in other.iterdir()]
    return filecmp.cmpfiles(one, other, names, shallow=False)[0] == names
