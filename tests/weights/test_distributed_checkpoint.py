from __future__ import annotations

import dataclasses
import os
import pickle
import random
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex

from rlforget.errors import NotACheckpointError, UnknownNameError
from rlforget.weights import DTYPES, open_weights
from rlforget.weights.distributed_checkpoint import DistributedWeights
from rlforget.weights.soundness import verify
from tests.delta.random_weights import bits_of, names, random_tensor, same_bits
from tests.weights.chunked_saves import ChunkPlanner, cut_at_random, edit_metadata, save

ROOT = Path(__file__).resolve().parents[2]
shapes = st.lists(st.integers(0, 7), max_size=4).map(tuple)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A tensor in two chunks, 24 numbers."""
    two = [((0, 0), (4, 2)), ((0, 2), (4, 4))]
    return save(tmp_path / "saved", {"w": torch.arange(24.0).reshape(4, 6)}, ChunkPlanner(lambda *_: two))


@given(
    st.dictionaries(names, st.tuples(st.sampled_from(DTYPES), shapes), min_size=1, max_size=4),
    st.integers(0, 6),
    st.booleans(),
    st.booleans(),
    st.integers(0, 2**32),
)
def test_any_chunks_of_any_tensors_read_as_the_tensors(
    metas: dict[str, tuple[torch.dtype, tuple[int, ...]]], times: int, one_file: bool, nested: bool, seed: int
) -> None:
    rng = random.Random(seed)
    tensors = {name: random_tensor(dtype, shape, rng) for name, (dtype, shape) in metas.items()}
    planner = ChunkPlanner(lambda _, shape: cut_at_random(shape, rng, times))
    state: dict[str, Any] = {"model": tensors} if nested else tensors
    with tempfile.TemporaryDirectory() as place:
        folder = save(Path(place) / "x", state, planner, single_file_per_rank=one_file, sync_files=False)
        weights = open_weights(folder)
        assert sorted(weights.names()) == sorted(tensors)
        for name, tensor in tensors.items():
            assert same_bits(weights.tensor(name), tensor)
            whole = weights.bits(name)
            start = rng.randint(0, whole.numel())
            stop = rng.randint(start, whole.numel())
            assert torch.equal(weights.bits(name, start, stop), whole[start:stop])
            assert torch.equal(bits_of(whole[start:stop]), bits_of(tensor.reshape(-1)[start:stop]))


def test_a_transposed_tensor_and_a_view_keep_their_values(tmp_path: Path) -> None:
    base = torch.arange(120.0).reshape(2, 3, 4, 5)
    tensors = {
        "transposed": base[0, 0].t(),
        "permuted": base.permute(2, 0, 3, 1),
        "view": base[1, :, 2:],
        "strided": base.flatten()[::7],
        "parameter": torch.nn.Parameter(base[1]),
    }
    weights = open_weights(save(tmp_path / "x", tensors))
    for name, tensor in tensors.items():
        assert same_bits(weights.tensor(name), tensor)
        assert torch.equal(weights.bits(name, 3, 11).view(torch.float32), tensor.detach().reshape(-1)[3:11])


@pytest.mark.parametrize(
    ("state", "prefix", "left_out"),
    [
        ({"W": 0, "b.c": 1}, (), ()),
        ({"model": {"W": 0, "b.c": 1}}, ("model",), ()),
        (
            {"model": {"W": 0, "b.c": 1}, "optimizer": {"state": {"W": 2}, "step": 3}},
            ("model",),
            ("optimizer.state.W", "optimizer.step"),
        ),
        ({"app": {"model": {"W": 0, "b.c": 1}, "optim": {"W": 2}}}, ("app", "model"), ("app.optim.W",)),
        ({"W": 0, "b": {"c": 1}, "optimizer": {"state": [2]}}, (), ("optimizer.state.0",)),
    ],
)
def test_the_model_alone_is_read_by_its_own_names(
    state: dict[str, Any], prefix: tuple[str, ...], left_out: tuple[str, ...], tmp_path: Path
) -> None:
    def filled(part: Any) -> Any:
        if isinstance(part, dict):
            return {name: filled(one) for name, one in part.items()}
        if isinstance(part, list):
            return [filled(one) for one in part]
        return "no tensor" if part == 3 else torch.full((2,), float(part))

    weights = open_weights(save(tmp_path / "x", filled(state)))
    assert isinstance(weights, DistributedWeights)
    assert (weights.names(), weights.prefix, weights.left_out) == (["W", "b.c"], prefix, left_out)
    assert torch.equal(weights.tensor("b.c"), torch.ones(2))
    with pytest.raises(UnknownNameError):
        weights.bits("optimizer.state.W")


def test_a_model_whose_own_names_begin_with_model_keeps_them(tmp_path: Path) -> None:
    own = {"model.embed.weight": torch.ones(1), "lm_head.weight": torch.ones(1)}
    for number, state in enumerate((own, {"model": own})):
        assert sorted(open_weights(save(tmp_path / str(number), state)).names()) == sorted(own)


def test_two_models_are_refused_by_name(tmp_path: Path) -> None:
    state = {who: {"model": {"w": torch.ones(2)}} for who in ("actor", "critic")}
    with pytest.raises(NotACheckpointError, match=r"actor\.model, critic\.model"):
        open_weights(save(tmp_path / "x", state))


def test_other_files_go_along_and_safetensors_go_before(saved: Path) -> None:
    (saved / "config.json").write_text("{}")
    assert open_weights(saved).files() == {"config.json": saved / "config.json"}
    from safetensors.torch import save_file

    save_file({"other": torch.ones(1)}, saved / "model.safetensors")
    assert open_weights(saved).names() == ["other"]


class _Program:
    """What a pickle does when it is loaded."""

    def __init__(self, call: Callable[..., Any], *arguments: Any) -> None:
        self._does = call, arguments

    def __reduce__(self) -> Any:
        return self._does


@pytest.mark.parametrize("call", ["os.mkdir", "eval", "torch.load"])
@pytest.mark.parametrize("place", ["metadata", "planner", "item"])
def test_no_program_in_a_pickle_runs(saved: Path, tmp_path: Path, place: str, call: str) -> None:
    trap = tmp_path / "trap"
    program = {
        "os.mkdir": _Program(os.mkdir, str(trap)),
        "eval": _Program(eval, f"__import__('os').mkdir({str(trap)!r})"),
        "torch.load": _Program(torch.serialization.load, str(trap)),
    }[call]
    path = saved / ".metadata"
    if place == "metadata":
        path.write_bytes(pickle.dumps(program))
    elif place == "planner":
        edit_metadata(saved, lambda metadata: setattr(metadata, "planner_data", {"w": program}))
    else:
        item = saved / "bad.distcp"
        with zipfile.ZipFile(item, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(program, protocol=2))
            archive.writestr("archive/data/0", bytes(96))
        redirect(saved, item)
    with pytest.raises(NotACheckpointError, match="names that torch"):
        open_weights(saved).bits("w")
    assert not trap.exists()


def redirect(folder: Path, item: Path) -> None:
    """Make every chunk of a folder be in `item`."""

    def edit(metadata: Metadata) -> None:
        for index, info in metadata.storage_data.items():
            new = dataclasses.replace(info, relative_path=item.name, offset=0, length=item.stat().st_size)
            metadata.storage_data[index] = new

    edit_metadata(folder, edit)


def _without_a_chunk(metadata: Metadata) -> None:
    metadata.state_dict_metadata["w"].chunks.pop()


def _twice(metadata: Metadata) -> None:
    chunks = metadata.state_dict_metadata["w"].chunks
    chunks[1] = chunks[0]


def _beyond(metadata: Metadata) -> None:
    metadata.state_dict_metadata["w"].size = torch.Size([4, 5])


def _no_place(metadata: Metadata) -> None:
    del metadata.storage_data[MetadataIndex("w", (0, 0))]


def _outside(metadata: Metadata) -> None:
    for info in metadata.storage_data.values():
        info.relative_path = "../" + info.relative_path


def _transformed(metadata: Metadata) -> None:
    for info in metadata.storage_data.values():
        info.transform_descriptors = ["zstd"]


def _complex(metadata: Metadata) -> None:
    metadata.state_dict_metadata["w"].properties.dtype = torch.complex64


def _another_dtype(metadata: Metadata) -> None:
    metadata.state_dict_metadata["w"].properties.dtype = torch.int32


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_without_a_chunk, "chunks of 8 of its 24 values"),
        (_twice, "on top of another"),
        (_beyond, "outside of"),
        (_no_place, "KeyError"),
        (_outside, "not in the folder"),
        (_transformed, "without extensions"),
        (_complex, "a dtype among"),
        (_another_dtype, "as the metadata say"),
    ],
)
def test_metadata_that_do_not_fit_are_refused_by_name(
    saved: Path, edit: Callable[[Metadata], None], message: str
) -> None:
    edit_metadata(saved, edit)
    with pytest.raises(NotACheckpointError, match=message):
        open_weights(saved).bits("w")


def test_a_missing_and_a_short_file_are_refused_by_name(saved: Path) -> None:
    (file,) = saved.glob("*.distcp")
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    with pytest.raises(NotACheckpointError, match="bytes or more"):
        open_weights(saved)
    file.write_bytes(whole)
    weights = open_weights(saved)
    file.write_bytes(whole[:400])
    with pytest.raises(NotACheckpointError, match=file.name):
        weights.bits("w")
    file.unlink()
    with pytest.raises(NotACheckpointError, match="no such file"):
        open_weights(saved)


def test_a_save_that_did_not_finish_is_refused_by_name(saved: Path) -> None:
    (saved / ".metadata").unlink()
    with pytest.raises(NotACheckpointError, match="did not finish"):
        open_weights(saved)


@given(st.data())
def test_damage_is_refused_by_name_or_shows_in_the_values(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = save(Path(place) / "x", {"w": torch.arange(6.0).reshape(2, 3)}, sync_files=False)
        file = data.draw(st.sampled_from(sorted(folder.iterdir())))
        raw = bytearray(file.read_bytes())
        for at in data.draw(st.lists(st.integers(0, len(raw) - 1), min_size=1, max_size=3)):
            raw[at] = data.draw(st.integers(0, 255))
        file.write_bytes(raw[: data.draw(st.integers(len(raw) // 2, len(raw)))])
        try:
            weights = open_weights(folder)
            for name in weights.names():
                weights.bits(name)
        except NotACheckpointError:
            pass


def test_verify_looks_at_every_item(saved: Path) -> None:
    found = verify(saved)
    assert (found.sound, found.tensors, found.files) == (True, 1, 1)
    (file,) = saved.glob("*.distcp")
    raw = bytearray(file.read_bytes())
    raw[-20:] = bytes(20)  # of the last item's table
    file.write_bytes(raw)
    found = verify(saved)
    assert [problem.kind for problem in found.problems] == ["unreadable"]


def test_shards_that_two_ranks_saved(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, "-m", "tests.weights.ranks_save", str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    whole = open_weights(tmp_path / "whole.safetensors")
    for name in ("fsdp", "columns", "consolidated"):
        weights = open_weights(tmp_path / name)
        assert sorted(weights.names()) == sorted(whole.names())
        for one in whole.names():
            assert torch.equal(weights.bits(one), whole.bits(one)), (name, one)
    with pytest.raises(NotACheckpointError, match="enable_consolidation"):
        open_weights(tmp_path / "apart")
    shutil.rmtree(tmp_path)
