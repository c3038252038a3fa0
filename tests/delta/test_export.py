"""Task vectors and plain coordinates: what a program without rlforget makes of them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import rlforget as rf
from rlforget.delta.exporting import export_coordinates, export_task_vector
from rlforget.errors import DeltaFileError, ExportError, NonFiniteError, OutputError, WrongBaseError
from tests.delta.file.forging import Parts, put_together, take_apart
from tests.delta.random_changes import Change, changes
from tests.delta.random_weights import Tensors, pairs, same_bits

FLOATS = st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn])


@st.composite
def finite_pairs(draw: st.DrawFn) -> tuple[Tensors, Tensors]:
    """Draw floating-point tensors of modest values before and after, one of them changed, and an integer one."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    shapes = st.lists(st.integers(1, 7), max_size=3).map(tuple)
    before, after = {"steps": torch.arange(3)}, {"steps": torch.arange(3) + draw(st.integers(0, 1))}
    for number, (dtype, shape) in enumerate(draw(st.lists(st.tuples(FLOATS, shapes), min_size=1, max_size=4))):
        values = torch.randn(shape, generator=generator)
        moved = torch.rand(shape, generator=generator) < draw(st.sampled_from([0.1, 1.0]))
        before[f"t{number}"] = values.to(dtype)
        after[f"t{number}"] = torch.where(moved, values * 1.5 + 0.25, values).to(dtype)
    return before, after


def load_folder(folder: Path, shard: int) -> Tensors:
    """Load a folder as a program does that knows of shards, and hold that none is larger than it may be."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return load_file(folder / "model.safetensors")
    placed = json.loads(index.read_text())["weight_map"]
    loaded = {name: load_file(folder / file)[name] for name, file in placed.items()}
    assert set(placed.values()) == {path.name for path in folder.glob("*.safetensors")}
    for file in set(placed.values()):
        inside = [tensor.nbytes for name, tensor in loaded.items() if placed[name] == file]
        assert sum(inside) <= shard or len(inside) == 1
    return loaded


@given(
    pair=finite_pairs(), dtype=FLOATS.filter(lambda d: d != torch.float8_e4m3fn), shard=st.sampled_from([1, 60, 10**9])
)
def test_a_task_vector_is_the_difference(pair: tuple[Tensors, Tensors], dtype: torch.dtype, shard: int) -> None:
    before, after = pair
    delta = rf.diff(before, after)
    floating = {name: tensor for name, tensor in before.items() if tensor.is_floating_point()}
    with tempfile.TemporaryDirectory() as work:
        out = Path(work) / "vector"
        if not any(delta[name].changed for name in floating):
            with pytest.raises(ExportError):
                export_task_vector(delta, out, dtype=dtype)
            return
        found = export_task_vector(delta, out, dtype=dtype, shard_bytes=shard)
        vector = load_folder(out, shard)
    assert vector.keys() == floating.keys()
    inexact, square = 0, 0.0
    for name, old in floating.items():
        wide = torch.float64 if torch.float64 in (dtype, old.dtype) else torch.float32
        exact = after[name].to(wide) - old.to(wide)
        assert torch.equal(vector[name], exact.to(dtype))
        again = (old.to(wide) + vector[name].to(wide)).to(old.dtype)
        changed = delta[name].indices.long()
        inexact += int((again.reshape(-1)[changed].double() != after[name].reshape(-1)[changed].double()).sum())
        square += float(exact.double().square().sum())
    assert (found.inexact, found.changed) == (inexact, sum(delta[name].changed for name in floating))
    assert found.norm == pytest.approx(square**0.5)
    assert found.left_out == (["steps"] if delta["steps"].changed else [])


def test_a_difference_in_bfloat16_is_not_lossless_and_the_export_says_so(tmp_path: Path) -> None:
    before = {"w": torch.randn(64, 64, generator=torch.Generator().manual_seed(0))}
    after = {"w": before["w"] * 1.01}
    delta = rf.diff(before, after)
    exact, rounded = (export_task_vector(delta, tmp_path / str(d), dtype=d) for d in (torch.float64, torch.bfloat16))
    assert exact.inexact == 0
    assert rounded.inexact > 4000
    assert f"{rounded.inexact:,}" in rounded.table()


def plainly_applied(file: Path, before: Tensors) -> Tensors:
    """What docs/export.md says a program does with a file of coordinates."""
    weights = {name: tensor.clone() for name, tensor in before.items()}
    with safe_open(file, framework="pt") as plain:
        facts = {key: json.loads(text) for key, text in plain.metadata().items() if key not in ("format", "version")}
        for key in plain.keys():  # noqa: SIM118
            name, _, column = key.rpartition(".")
            if column == "whole":
                weights[name] = plain.get_tensor(key)
            elif column == "after":
                values, bits = plain.get_tensor(key), {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
                integers = bits[values.element_size()]
                indices = plain.get_tensor(f"{name}.indices").long()
                flat = weights[name].view(-1).view(integers)
                assert torch.equal(flat[indices], plain.get_tensor(f"{name}.before").view(integers))
                flat[indices] = values.view(integers)
                assert list(weights[name].shape) == facts["shapes"][name]
    renamed = facts["renamed"]
    return {renamed.get(name, name): tensor for name, tensor in weights.items() if name not in facts["dropped"]}


@settings(max_examples=40)
@given(pair=pairs(), at=st.sampled_from(["before", "after", "self-contained", "memory"]))
def test_coordinates_rebuild_the_weights_bit_for_bit(pair: tuple[Tensors, Tensors], at: str) -> None:
    before, after = pair
    delta = rf.diff(before, after)
    with tempfile.TemporaryDirectory() as work:
        file, out = Path(work, "x.delta.safetensors"), Path(work, "plain.safetensors")
        delta.save(file, self_contained=at == "self-contained")
        base = {"before": before, "after": after}.get(at)
        found = export_coordinates(delta if at == "memory" else file, out, base=base)
        assert out.stat().st_size == found.bytes
        rebuilt = plainly_applied(out, before)
    assert rebuilt.keys() == after.keys()
    assert all(same_bits(rebuilt[name], after[name]) for name in after)
    assert found.changed == delta.changed


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(change=changes())
def test_coordinates_hold_tensors_that_come_go_and_change_their_shape(change: Change) -> None:
    with tempfile.TemporaryDirectory() as work:
        folders = [side.write(Path(work, name)) for name, side in (("a", change.before), ("b", change.after))]
        delta = rf.delta.compare.diff(*folders, rename=change.renamed)
        out = Path(work, "plain.safetensors")
        export_coordinates(delta, out)
        if change.before.ties or change.after.ties:
            return  # a name that is tied on one side alone is another program's affair
        rebuilt = plainly_applied(out, change.before.tensors)
    assert rebuilt.keys() == change.after.tensors.keys()
    assert all(same_bits(rebuilt[name], tensor) for name, tensor in change.after.tensors.items())


REFUSED: dict[str, tuple[Tensors, Tensors, Any]] = {
    "a tensor added": ({"w": torch.ones(2)}, {"w": torch.zeros(2), "v": torch.ones(2)}, ExportError),
    "nothing changed": ({"w": torch.ones(2)}, {"w": torch.ones(2)}, ExportError),
    "integers alone": ({"w": torch.arange(2)}, {"w": torch.arange(2) + 1}, ExportError),
    "to infinity": ({"w": torch.ones(2)}, {"w": torch.tensor([1.0, torch.inf])}, NonFiniteError),
    "from NaN": ({"w": torch.tensor([torch.nan])}, {"w": torch.ones(1)}, NonFiniteError),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("dry_run", [False, True])
def test_a_task_vector_refuses_what_has_no_difference(case: str, dry_run: bool, tmp_path: Path) -> None:
    before, after, fault = REFUSED[case]
    with pytest.raises(fault):
        export_task_vector(rf.diff(before, after), tmp_path / "out", dry_run=dry_run)
    assert list(tmp_path.iterdir()) == []


def test_float16_that_overflows_is_refused(tmp_path: Path) -> None:
    delta = rf.diff({"w": torch.zeros(2)}, {"w": torch.tensor([0.0, 1e6])})
    with pytest.raises(NonFiniteError, match="float16"):
        export_task_vector(delta, tmp_path / "out", dtype=torch.float16)


def test_wrong_bases_and_taken_places_are_refused(tmp_path: Path) -> None:
    before, after = {"w": torch.ones(9)}, {"w": torch.arange(9.0)}
    delta = rf.diff(before, after)
    delta.save(tmp_path / "x.delta.safetensors")
    for export in (export_task_vector, export_coordinates):
        out = tmp_path / "out"
        for source in (delta, tmp_path / "x.delta.safetensors"):
            with pytest.raises(WrongBaseError):
                export(source, out, base={"w": torch.zeros(9)})
        with pytest.raises(DeltaFileError, match="--base"):
            export(tmp_path / "x.delta.safetensors", out)
        assert not out.exists()
        out.write_text("mine")
        with pytest.raises(OutputError):
            export(tmp_path / "x.delta.safetensors", out, base=before)
        assert out.read_text() == "mine"
        out.unlink()


FORGED: dict[str, Callable[[Parts], object]] = {
    "another fingerprint after": lambda p: p.lanes.__setitem__(3, 7),
    "another count": lambda p: (p.changed.__setitem__(0, 3), p.rows[0].__setitem__("changed", 3)),
}


@pytest.mark.parametrize("case", FORGED)
@pytest.mark.parametrize("export", [export_coordinates, export_task_vector])
def test_a_forged_file_is_refused_and_nothing_is_written(
    case: str, export: Callable[..., object], tmp_path: Path
) -> None:
    file, out = tmp_path / "x.delta.safetensors", tmp_path / "out"
    rf.diff({"w": torch.ones(9)}, {"w": torch.arange(9.0)}).save(file, self_contained=True)
    parts = take_apart(file.read_bytes())
    FORGED[case](parts)
    file.write_bytes(put_together(parts))
    with pytest.raises(DeltaFileError):
        export(file, out)
    assert not out.exists()


def test_a_task_vector_of_a_checkpoint_is_read_as_a_model(tmp_path: Path) -> None:
    """Tools such as mergekit take a folder with a config for a model."""
    before, after = {"w": torch.ones(4, 4)}, {"w": torch.arange(16.0).reshape(4, 4)}
    (tmp_path / "base").mkdir()
    save_file(before, tmp_path / "base" / "model.safetensors")
    (tmp_path / "base" / "config.json").write_text('{"model_type": "mine"}')
    delta = rf.diff(tmp_path / "base", after)
    export_task_vector(delta, tmp_path / "vector", base=tmp_path / "base")
    assert (tmp_path / "vector" / "config.json").read_text() == '{"model_type": "mine"}'
    assert torch.equal(rf.open_weights(tmp_path / "vector").tensor("w"), after["w"] - before["w"])
