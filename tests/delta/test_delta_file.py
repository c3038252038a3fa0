from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load, load_file, save, save_file

from rlforget.delta import Delta, diff, file
from rlforget.errors import DeltaFileError, OutputError

Parts = dict[str, torch.Tensor]


def small() -> Delta:
    before = {
        "a": torch.arange(6, dtype=torch.float32).view(2, 3),
        "same": torch.zeros(2, dtype=torch.bfloat16),
        "b": torch.zeros(4, dtype=torch.float16),
    }
    after = {name: tensor.clone() for name, tensor in before.items()}
    after["a"].view(-1)[[1, 4, 5]] += 1
    after["b"][2] = -0.0
    delta = diff(before, after, metadata={"domain": "math"})
    delta.aliases["tied"] = "a"
    return delta


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("delta") / "x"
    small().save(path)
    return path.read_bytes()


def test_the_file_is_plain_safetensors_with_readable_metadata(tmp_path: Path) -> None:
    path = tmp_path / "x.delta.safetensors"
    small().save(path)
    parts = load_file(path)
    assert sorted(parts) == ["0.after", "0.before", "0.indices", "2.after", "2.before", "2.indices"]
    assert parts["0.indices"].tolist() == [1, 4, 5]
    assert parts["0.before"].view(torch.float32).tolist() == [1.0, 4.0, 5.0]
    assert parts["2.after"].tolist() == [-(2**15)]
    with safe_open(path, framework="pt") as opened:
        metadata = opened.metadata()
    assert (metadata["format"], metadata["version"]) == ("rlforget.delta", "1")
    described = json.loads(metadata["delta"])
    assert described["tensors"][0].keys() == {"name", "dtype", "shape", "changed", "fingerprint"}
    assert described["aliases"] == {"tied": "a"}


def test_equal_deltas_give_equal_files(sound: bytes, tmp_path: Path) -> None:
    small().save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == sound


def test_existing_files_are_kept_without_force(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"mine")
    with pytest.raises(OutputError, match="force"):
        small().save(path)
    assert path.read_bytes() == b"mine"
    small().save(path, force=True)
    small().save(path, force=True)
    assert Delta.load(path) == small()
    Delta.load(path).save(path, force=True)  # from the very file that is replaced
    assert Delta.load(path) == small()


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_one_damaged_byte_is_refused_or_harmless(sound: bytes, data: st.DataObject) -> None:
    position = data.draw(st.integers(0, len(sound) - 1))
    damaged = bytearray(sound)
    damaged[position] ^= data.draw(st.integers(1, 255))
    assert_refused_or_equal(bytes(damaged))


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_truncated_file_is_refused(sound: bytes, data: st.DataObject) -> None:
    with pytest.raises(DeltaFileError):
        load_bytes(sound[: data.draw(st.integers(0, len(sound) - 1))])


def load_bytes(content: bytes) -> Delta:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x"
        path.write_bytes(content)
        return Delta.load(path)


def assert_refused_or_equal(content: bytes) -> None:
    try:
        delta = load_bytes(content)
    except DeltaFileError:
        return
    assert delta == small()
    assert delta.aliases == {"tied": "a"}
    assert delta.metadata == {"domain": "math"}


def forge(sound: bytes, change: Callable[[dict[str, Any], Parts, dict[str, str]], None]) -> bytes:
    """Return the file with its description, tensors or strings changed, and a checksum that fits."""
    length = int.from_bytes(sound[:8], "little")
    strings: dict[str, str] = json.loads(sound[8 : 8 + length])["__metadata__"]
    described, parts = json.loads(strings["delta"]), load(sound)
    change(described, parts, strings)
    if "delta" in strings:
        strings["delta"] = json.dumps(described)
        strings["sha256"] = file._checksum(strings["delta"])
    return save(parts, strings)


def describe(key: str, value: object) -> Callable[[dict[str, Any], Parts, dict[str, str]], None]:
    return lambda described, parts, strings: described["tensors"][0].update({key: value})


def part(key: str, value: torch.Tensor) -> Callable[[dict[str, Any], Parts, dict[str, str]], None]:
    return lambda described, parts, strings: parts.update({key: value})


FORGERIES: dict[str, Callable[[dict[str, Any], Parts, dict[str, str]], object]] = {
    "another format": lambda d, p, s: s.update(format="pt"),
    "a later version": lambda d, p, s: s.update(version="2"),
    "no description": lambda d, p, s: s.pop("delta"),
    "no tensors": lambda d, p, s: d.pop("tensors"),
    "tensors are no list": lambda d, p, s: d.update(tensors={"a": 1}),
    "a tensor is no object": lambda d, p, s: d.update(tensors=[3]),
    "no aliases": lambda d, p, s: d.pop("aliases"),
    "alias of no tensor": lambda d, p, s: d.update(aliases={"tied": "c"}),
    "alias over a tensor": lambda d, p, s: d.update(aliases={"b": "a"}),
    "alias is a number": lambda d, p, s: d.update(aliases={"tied": 3}),
    "metadata is a number": lambda d, p, s: d.update(metadata=3),
    "twice the same tensor": lambda d, p, s: d["tensors"][1].update(name="a"),
    "name is a number": describe("name", 3),
    "unknown dtype": describe("dtype", "float4"),
    "dtype is a list": describe("dtype", []),
    "another width": describe("dtype", "float64"),
    "shape too small": describe("shape", [5]),
    "shape negative": describe("shape", [-2, -3]),
    "shape of floats": describe("shape", [2.0, 3.0]),
    "shape past 64 bits": describe("shape", [2**40, 2**40]),
    "shape that asks for wide indices": describe("shape", [2**31]),
    "count too small": describe("changed", 2),
    "count of zero": describe("changed", 0),
    "count is true": describe("changed", True),
    "count is false": lambda d, p, s: d["tensors"][1].update(changed=False),
    "fingerprint of three": describe("fingerprint", {"before": [1, 2, 3], "after": [1, 2]}),
    "fingerprint too large": describe("fingerprint", {"before": [2**63, 2], "after": [1, 2]}),
    "another fingerprint": describe("fingerprint", {"before": [1, 2], "after": [3, 4]}),
    "indices do not ascend": part("0.indices", torch.tensor([1, 5, 4], dtype=torch.int32)),
    "index twice": part("0.indices", torch.tensor([1, 4, 4], dtype=torch.int32)),
    "index below zero": part("0.indices", torch.tensor([-1, 4, 5], dtype=torch.int32)),
    "index past the end": part("0.indices", torch.tensor([1, 4, 6], dtype=torch.int32)),
    "another index": part("0.indices", torch.tensor([1, 3, 5], dtype=torch.int32)),
    "wide indices": part("0.indices", torch.tensor([1, 4, 5])),
    "two-dimensional indices": part("0.indices", torch.tensor([[1, 4, 5]], dtype=torch.int32)),
    "too few bits": part("0.before", torch.zeros(2, dtype=torch.int32)),
    "bits as floats": part("0.before", torch.tensor([1.0, 4.0, 5.0])),
    "other bits": part("0.before", torch.zeros(3, dtype=torch.int32)),
    "nothing changed": lambda d, p, s: p.update({"0.after": p["0.before"].clone()}),
    "a part missing": lambda d, p, s: p.pop("0.after"),
    "a part too many": part("1.indices", torch.zeros(1, dtype=torch.int32)),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_forged_files_are_refused(forgery: str, sound: bytes) -> None:
    load_bytes(forge(sound, lambda described, parts, strings: None))
    with pytest.raises(DeltaFileError):
        load_bytes(forge(sound, FORGERIES[forgery]))  # type: ignore[arg-type]


def test_a_description_that_does_not_fit_its_checksum_is_refused(sound: bytes) -> None:
    with pytest.raises(DeltaFileError, match="checksum"):
        load_bytes(sound.replace(b"same", b"sane", 1))


def test_a_deeply_nested_description_is_refused(sound: bytes) -> None:
    text = "[" * 100_000
    strings = {"format": "rlforget.delta", "version": "1", "delta": text, "sha256": file._checksum(text)}
    with pytest.raises(DeltaFileError, match="RecursionError"):
        load_bytes(save(load(sound), strings))


def test_other_files_are_refused(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(DeltaFileError, match="format None"):
        Delta.load(tmp_path / "model.safetensors")
    with pytest.raises(DeltaFileError, match="No such file"):
        Delta.load(tmp_path / "gone")
    with pytest.raises(DeltaFileError):
        Delta.load(tmp_path)


@given(st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3), st.text(max_size=20))
@settings(max_examples=40, deadline=None)
def test_any_names_and_strings_come_back(metadata: dict[str, str], name: str) -> None:
    delta = diff({name: torch.zeros(2)}, {name: torch.ones(2)}, metadata=metadata)
    with tempfile.TemporaryDirectory() as folder:
        delta.save(Path(folder) / "x")
        loaded = Delta.load(Path(folder) / "x")
    assert loaded == delta
    assert loaded.metadata == metadata


@pytest.mark.parametrize("chunk", [1, 2, 3, 4, 5])
def test_checks_by_chunks_miss_nothing_at_their_ends(
    chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file, "_CHUNK", chunk)
    delta = diff({"x": torch.zeros(9)}, {"x": torch.tensor([1.0, 0, 1, 1, 0, 1, 0, 0, 1])})
    delta.save(tmp_path / "x")
    sound = (tmp_path / "x").read_bytes()
    assert load_bytes(sound) == delta
    order = delta["x"].indices
    for left in range(4):
        swapped = order.clone()
        swapped[[left, left + 1]] = order[[left + 1, left]]
        with pytest.raises(DeltaFileError, match="ascend"):
            load_bytes(forge(sound, part("0.indices", swapped)))
