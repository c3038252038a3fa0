"""A change added to its base, and a change as a LoRA: ours beside mergekit's, on one pair of checkpoints."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

from safetensors import safe_open

from benchmarks.peers.processes import in_turns, measure
from rlforget.weights import open_weights

RANK = 16

RECIPE = """merge_method: task_arithmetic
base_model: {pair}/before
models:
  - model: {pair}/after
    parameters: {{weight: 1.0}}
dtype: float32
out_dtype: bfloat16
"""


def added(pair: Path, work: Path, ours: Path, theirs: Path, rounds: int, limit: float) -> dict[str, Any]:
    """Make the model after from the base and the change, and hold that it is, to the bit.

    Args:
        pair: Holds `before` and `after`.
        work: A folder to write in.
        ours: The folder of the program `rlforget`.
        theirs: The folder of mergekit's programs.
        rounds: How many times each.
        limit: Seconds for one.
    """
    delta, recipe = work / "change.delta.safetensors", work / "merge.yml"
    recipe.write_text(RECIPE.format(pair=pair.resolve()))
    measure([str(ours / "rlforget"), "diff", str(pair / "before"), str(pair / "after"), "-o", str(delta)], limit)
    commands = {
        "rlforget": [
            str(ours / "rlforget"),
            "apply",
            str(pair / "before"),
            str(delta),
            "-o",
            str(work / "a"),
            "--force",
        ],
        "mergekit": [str(theirs / "mergekit-yaml"), str(recipe), str(work / "b"), "--no-copy-tokenizer", "--quiet"],
    }
    found = in_turns(commands, rounds, limit)
    for name, folder in (("rlforget", "a"), ("mergekit", "b")):
        if "note" not in found[name]:
            found[name]["differ"] = differing(work / folder, pair / "after")
        shutil.rmtree(work / folder, ignore_errors=True)
    return {"read": {"delta": delta.stat().st_size, "model": size_of(pair / "after")}, "tools": found}


def extracted(pair: Path, work: Path, ours: Path, theirs: Path, rounds: int, limit: float) -> dict[str, Any]:
    """Cut the change of every linear layer to rank 16; arguments as for `added`."""
    delta = work / "slice.delta.safetensors"
    measure([str(ours / "rlforget"), "diff", str(pair / "before"), str(pair / "after"), "-o", str(delta)], limit)
    export = ["export", str(delta), "--base", str(pair / "before"), "--format", "lora", "--rank", str(RANK), "--force"]
    sides = ["--model", str(pair / "after"), "--base-model", str(pair / "before")]
    options = ["--max-rank", str(RANK), "--skip-undecomposable", "--exclude-regex", "embed_tokens|lm_head", "--quiet"]
    commands = {
        "rlforget": [str(ours / "rlforget"), *export, "-o", str(work / "lora-a")],
        "mergekit": [str(theirs / "mergekit-extract-lora"), *sides, "--out-path", str(work / "lora-b"), *options],
    }
    found = in_turns(commands, rounds, limit)
    for name, folder in (("rlforget", "lora-a"), ("mergekit", "lora-b")):
        if "note" not in found[name]:
            found[name] |= error_of(work / folder, pair)
    return {"rank": RANK, "tools": found}


def error_of(adapter: Path, pair: Path) -> dict[str, Any]:
    """Return ‖δ − scale·B·A‖ / ‖δ‖ over the matrices that an adapter has, in float64, and how many those are."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    scale = config["lora_alpha"] / config["r"]
    before, after = open_weights(pair / "before"), open_weights(pair / "after")
    missed = energy = 0.0
    with safe_open(adapter / "adapter_model.safetensors", framework="pt") as file:
        keys = [key for key in file.keys() if key.endswith(".lora_A.weight")]  # noqa: SIM118
        for key in keys:
            name = key.removeprefix("base_model.model.").replace(".lora_A", "")
            a, b = (file.get_tensor(one).double() for one in (key, key.replace("lora_A", "lora_B")))
            change = after.tensor(name).double() - before.tensor(name).double()
            energy += float(change.square().sum())
            missed += float((change - scale * b @ a).square().sum())
    return {"error": math.sqrt(missed / energy), "matrices": len(keys)}


def differing(one: Path, other: Path) -> int:
    """Return how many coordinates of two checkpoints differ, by their bits."""
    first, second = open_weights(one), open_weights(other)
    return sum(int((first.bits(name) != second.bits(name)).sum()) for name in second.names())


def size_of(folder: Path) -> int:
    """Return the bytes of a checkpoint's weights."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))
