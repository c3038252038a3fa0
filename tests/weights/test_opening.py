from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import nn

from rlforget.errors import NotACheckpointError, UnknownNameError
from rlforget.weights import TensorMeta, open_weights
from rlforget.weights.safetensors_file import read_header


def write_shards(folder: Path, shards: dict[str, dict[str, torch.Tensor]]) -> Path:
    folder.mkdir(exist_ok=True)
    for file, tensors in shards.items():
        save_file(tensors, folder / file)
    index = {"metadata": {}, "weight_map": {name: file for file, tensors in shards.items() for name in tensors}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def write_raw(path: Path, header: object, data: bytes) -> Path:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    return {
        "layers.10.weight": torch.randn(3, 5, dtype=torch.bfloat16),
        "layers.2.weight": torch.arange(4),
        "scale": torch.tensor(2.5),
        "empty": torch.empty(0, 7, dtype=torch.float16),
        "mask": torch.tensor([True, False]),
        "fp8": torch.randn(6).to(torch.float8_e4m3fn),
    }


@pytest.mark.parametrize("kind", ["file", "folder", "shards", "other file name", "mapping"])
def test_every_source_gives_the_same_tensors(kind: str, tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    source: object = tensors
    if kind == "file":
        save_file(tensors, tmp_path / "weights.safetensors")
        source = str(tmp_path / "weights.safetensors")
    elif kind in {"folder", "other file name"}:
        save_file(tensors, tmp_path / ("model.safetensors" if kind == "folder" else "vae.safetensors"))
        source = tmp_path
    elif kind == "shards":
        names = list(tensors)
        halves = {"a.safetensors": names[:3], "b.safetensors": names[3:]}
        source = write_shards(tmp_path, {file: {n: tensors[n] for n in part} for file, part in halves.items()})
    weights = open_weights(source)  # type: ignore[arg-type]
    assert set(weights.names()) == set(tensors)
    for name, tensor in tensors.items():
        assert weights.meta(name) == TensorMeta(tensor.dtype, tuple(tensor.shape))
        assert weights.meta(name).numel == tensor.numel()
        read = weights.tensor(name)
        assert read.dtype == tensor.dtype
        assert torch.equal(read.reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))
    assert open_weights(weights) is weights


def test_names_of_a_checkpoint_are_in_natural_order(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    save_file(tensors, tmp_path / "model.safetensors")
    names = open_weights(tmp_path).names()
    assert names.index("layers.2.weight") < names.index("layers.10.weight")


def test_single_file_goes_before_an_index_as_in_transformers(tmp_path: Path) -> None:
    write_shards(tmp_path, {"a.safetensors": {"old": torch.zeros(1)}})
    save_file({"new": torch.ones(1)}, tmp_path / "model.safetensors")
    assert open_weights(tmp_path).names() == ["new"]


def test_names_that_save_model_dropped_are_aliases(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Linear(3, 3, bias=False)
            self.head = nn.Linear(3, 3, bias=False)
            self.head.weight = self.embed.weight

    save_model(Tied(), str(tmp_path / "model.safetensors"))
    weights = open_weights(tmp_path)
    assert len(weights.names()) == 1
    assert torch.equal(weights.tensor("head.weight"), weights.tensor("embed.weight"))
    assert "head.weight" in weights
    assert "embed.weight" in weights


def test_values_are_mapped_and_not_read(tmp_path: Path) -> None:
    size = 5 << 30  # above 4 GiB; the file is a hole but for its ends
    path = write_raw(
        tmp_path / "model.safetensors", {"big": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}, b"\1"
    )
    with open(path, "r+b") as file:
        file.seek(path.stat().st_size - 1 + size - 1)
        file.write(b"\7")
    tensor = open_weights(tmp_path).tensor("big")
    assert tensor.numel() == size
    assert (int(tensor[0]), int(tensor[1 << 32]), int(tensor[-1])) == (1, 0, 7)


def test_tensors_at_odd_bytes_are_read(tmp_path: Path) -> None:
    values = torch.tensor([1.5, -2.0])
    header = {
        "flag": {"dtype": "BOOL", "shape": [1], "data_offsets": [0, 1]},
        "odd": {"dtype": "F32", "shape": [2], "data_offsets": [1, 9]},
    }
    write_raw(tmp_path / "model.safetensors", header, b"\1" + values.numpy().tobytes())
    weights = open_weights(tmp_path)
    assert torch.equal(weights.tensor("odd"), values)
    assert bool(weights.tensor("flag"))


def test_unknown_names_are_refused_by_name() -> None:
    weights = open_weights({"a": torch.zeros(1)})
    with pytest.raises(UnknownNameError, match="'b'"):
        weights.tensor("b")
    with pytest.raises(KeyError):
        weights.meta("b")


@pytest.mark.parametrize("source", [3, None, {"a": 1.0}, [torch.zeros(1)]])
def test_other_objects_are_no_weights(source: object) -> None:
    with pytest.raises(TypeError, match="weights are a path"):
        open_weights(source)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "a folder without any"),
        ({"pytorch_model.bin": b"x"}, "only pytorch_model.bin"),
        ({"a.safetensors": b"", "b.safetensors": b""}, "2 safetensors files"),
        ({"model.safetensors": b""}, "header"),
        ({"model.safetensors": b"\xff" * 64}, "header"),
        ({"model.safetensors.index.json": b"{"}, "index"),
        ({"model.safetensors.index.json": b"[]"}, "index"),
        ({"model.safetensors.index.json": b'{"weight_map": {}}'}, "empty"),
        ({"model.safetensors.index.json": b'{"weight_map": {"a": 3}}'}, "other than files beside it"),
        ({"model.safetensors.index.json": b'{"weight_map": {"a": "../x.safetensors"}}'}, "other than files beside it"),
        ({"model.safetensors.index.json": b'{"weight_map": {"a": "gone.safetensors"}}'}, "gone.safetensors"),
    ],
    ids=lambda value: value if isinstance(value, str) else "+".join(value) or "empty",
)
def test_folders_that_are_no_checkpoint_are_refused(files: dict[str, bytes], message: str, tmp_path: Path) -> None:
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(NotACheckpointError, match=message):
        open_weights(tmp_path)


def test_missing_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotACheckpointError, match="nothing there"):
        open_weights(tmp_path / "gone")


def test_file_that_is_truncated_once_it_is_open_is_refused(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file(tensors, file)
    weights = open_weights(file)
    os.truncate(file, read_header(file).data_start + 8)
    for read in (weights.tensor, weights.bits):
        with pytest.raises(NotACheckpointError, match="whole safetensors file"):
            read("fp8")


def test_truncated_file_is_refused(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(tensors, path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(NotACheckpointError, match="whole safetensors file"):
        open_weights(path)


def test_unsupported_dtype_is_refused_by_name(tmp_path: Path) -> None:
    save_file({"z": torch.zeros(2, dtype=torch.complex64)}, tmp_path / "model.safetensors")
    with pytest.raises(NotACheckpointError, match=r"tensor 'z'.*C64"):
        open_weights(tmp_path)


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "1.safetensors", "b": "1.safetensors"}, "'b' in 2.safetensors"),
        ({"a": "1.safetensors", "b": "2.safetensors", "c": "2.safetensors"}, "'c' in no shard"),
        ({"a": "2.safetensors", "b": "2.safetensors"}, "'a' in no shard"),
    ],
)
def test_index_that_disagrees_with_its_shards_is_refused(
    weight_map: dict[str, str], message: str, tmp_path: Path
) -> None:
    write_shards(tmp_path, {"1.safetensors": {"a": torch.zeros(1)}, "2.safetensors": {"b": torch.zeros(1)}})
    if len(set(weight_map.values())) == 1 and "1.safetensors" in weight_map.values():
        weight_map = {**weight_map, "x": "2.safetensors"}
        save_file({"b": torch.zeros(1), "x": torch.zeros(1)}, tmp_path / "2.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(NotACheckpointError, match=message):
        open_weights(tmp_path)


def test_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    write_shards(
        tmp_path,
        {"1.safetensors": {"a": torch.zeros(1)}, "2.safetensors": {"a": torch.zeros(1), "b": torch.zeros(1)}},
    )
    (tmp_path / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}})
    )
    with pytest.raises(NotACheckpointError, match=r"'a' in 1.safetensors and in 2.safetensors"):
        open_weights(tmp_path)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(NotACheckpointError, match="no plain file"):
        open_weights(tmp_path)
