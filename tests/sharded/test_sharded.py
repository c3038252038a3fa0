"""Ranks that hold shards of a model see, score and undo what one process does of the whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.sharded.ranks_program import main

ROOT = Path(__file__).resolve().parents[2]
Coordinates = dict[str, tuple[Tensor | None, Tensor]]


@pytest.mark.parametrize(
    ("form", "ranks", "dtype"),
    [
        ("fsdp", 2, "float32"),
        pytest.param("fsdp", 1, "float32", marks=pytest.mark.slow),
        pytest.param("fsdp", 4, "bfloat16", marks=pytest.mark.slow),
        pytest.param("copies", 4, "float32", marks=pytest.mark.slow),
        pytest.param("tensor", 4, "float32", marks=pytest.mark.slow),
        pytest.param("states", 2, "bfloat16", marks=pytest.mark.slow),
        pytest.param("states", 4, "float32", marks=pytest.mark.slow),
    ],
)
def test_shards_are_treated_as_the_whole_is(tmp_path: Path, form: str, ranks: int, dtype: str) -> None:
    together, alone = tmp_path / "together", tmp_path / "alone"
    for folder in (together, alone):
        folder.mkdir()
    torchrun(ranks, "tests.sharded.ranks_program", str(together), form, dtype)
    main(str(alone), "alone", dtype)
    ours, theirs = merged(together, ranks), merged(alone, 1)
    if form == "states":  # no model: what takes gradients is left out
        theirs = {key: value for key, value in theirs.items() if key.split("/")[0] in ("before", "after")}
    if form == "tensor":  # the model's own products are summed in another order, and so are gradients
        ours, theirs = ({k: v for k, v in one.items() if not of_gradients(k)} for one in (ours, theirs))
    assert ours.keys() == theirs.keys()
    for key, (indices, values) in ours.items():
        expected_indices, expected = theirs[key]
        if not rounded(key, form):
            assert indices is None or torch.equal(indices, expected_indices), key
            assert torch.equal(values, expected), key
        elif not key.startswith(("rollback", "top")):
            assert torch.equal(indices, expected_indices), key
            assert float((values - expected).norm()) <= 1e-3 * float(expected.norm()), key
    check_subspace(ours, theirs, dtype)
    check_numbers(together, alone, exact=form != "tensor", dtype=dtype)
    # The state dict of FSDP1 knows nothing of ties, which a checkpoint of its own notes.
    same = [
        "change.delta.safetensors",
        "like/model.safetensors",
        *([] if form == "states" else ["saved/model.safetensors"]),
    ]
    for path in same:
        assert (together / path).read_bytes() == (alone / path).read_bytes(), path


def of_gradients(key: str) -> bool:
    """Whether which coordinates these are hangs on the last digits of gradients; or they are of the control."""
    picked = any(f"top {score} " in key for score in ("fisher", "two_fisher", "taylor", "subspace"))
    return picked or "random" in key or (key.startswith("rollback") and "Coordinates" not in key)


def rounded(key: str, form: str) -> bool:
    """Whether values come from products of gradients, which ranks add up in another order."""
    what = ("score subspace", "top subspace", "rollback ConflictSubspace")
    if form == "tensor":
        what += ("fisher/", "gradient/", "score fisher", "score two_fisher", "score taylor", "rollback Coordinates")
    return key.startswith(what)


def check_subspace(ours: Coordinates, theirs: Coordinates, dtype: str) -> None:
    """Hold the written bits together: u differs by 1e-6 of itself, and so does its chance to be rounded up."""
    written = [key for key in ours if key.startswith("rollback ConflictSubspace") and "logits" not in key]
    if dtype == "bfloat16":
        assert sum(int((ours[key][1] != theirs[key][1]).sum()) for key in written) <= 2


def check_numbers(together: Path, alone: Path, *, exact: bool, dtype: str) -> None:
    ours, theirs = (json.loads((folder / "0.json").read_text()) for folder in (together, alone))
    if dtype == "bfloat16":
        # Of the whole, damage is predicted by forward mode in the model's dtype; on shards from gradients in float32.
        ours = {key: found for key, found in ours.items() if not key.startswith("damage,")}
    for key, found in ours.items():
        if dtype == "float32" and "ConflictSubspace" in key:  # what rounding did to it there is no more than rounding
            for report in (found, theirs[key]):
                report |= {"rounding": None, "rounding_damage": None, "written": round(report["written"], -2)}
        if exact or "rollback" not in key:
            assert close(found, theirs[key]), key


def close(found: Any, expected: Any) -> bool:
    """Whether integers and texts are the same, and sums of floats up to their order."""
    if isinstance(found, dict):
        return found.keys() == expected.keys() and all(close(found[key], expected[key]) for key in found)
    if isinstance(found, list):
        return len(found) == len(expected) and all(map(close, found, expected))
    if isinstance(found, float):
        return bool(found == pytest.approx(expected, rel=1e-4, abs=1e-7))
    return bool(found == expected)


def merged(folder: Path, ranks: int) -> Coordinates:
    """Put together what the ranks told, by ascending index."""
    parts: dict[str, list[Tensor]] = {}
    for rank in range(ranks):
        for key, value in load_file(folder / f"{rank}.safetensors").items():
            parts.setdefault(key, []).append(value)
    found: Coordinates = {}
    for key in [key.removesuffix("/values") for key in parts if key.endswith("/values")]:
        if f"{key}/indices" not in parts:
            found[key] = (None, parts[f"{key}/values"][0])
            continue
        indices, order = torch.cat(parts[f"{key}/indices"]).sort()
        assert bool((indices[1:] > indices[:-1]).all()), key  # each is told once
        found[key] = (indices, torch.cat(parts[f"{key}/values"])[order])
    return {key: value for key, value in found.items() if value[1].numel()}


def torchrun(ranks: int, *program: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *program], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-6000:]
