from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from rlforget.delta import Delta, FileDelta, apply, diff
from rlforget.delta.file import DeltaFile
from rlforget.delta.patching import check_fits
from rlforget.delta.streaming import write_diff
from rlforget.errors import DeltaFileError, LayoutError, OutputError, WrongBaseError
from tests.delta.file.deltas import loaded
from tests.delta.file.forging import Parts, compressed, put_together, take_apart
from tests.delta.random_weights import Tensors

Forgery = Callable[[Parts], object]


def sides() -> tuple[Tensors, Tensors]:
    before = {
        "a": torch.arange(600, dtype=torch.float32),
        "same": torch.zeros(2, dtype=torch.bfloat16),
        "b": torch.zeros(40, dtype=torch.float16),
        "gone": torch.ones(3, dtype=torch.int8),
    }
    after = {name: tensor.clone() for name, tensor in before.items() if name != "gone"}
    after["a"][[1, 4, 5, 599]] += 1
    after["b"] += torch.arange(40)
    after["new"] = torch.ones(2, 2, dtype=torch.bool)
    return before, after


def some() -> Delta:
    delta = diff(*sides(), metadata={"domain": "math"})
    delta.files["config.json"] = FileDelta("config.json", b"{}", b'{"a": 1}')
    delta.aliases["tied"] = "a"
    return delta


@pytest.fixture(scope="module", params=[False, True], ids=["steps", "self-contained"])
def sound(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("delta") / "x"
    some().save(path, self_contained=request.param)
    return path.read_bytes()


def refused_or_equal(content: bytes) -> None:
    base, _ = sides()
    try:
        delta = loaded(content, base)
    except DeltaFileError:
        return
    assert delta == some()
    assert delta.aliases == {"tied": "a"}
    assert delta.metadata == {"domain": "math"}


@given(data=st.data())
@settings(max_examples=300)
def test_one_damaged_byte_is_refused_or_harmless(sound: bytes, data: st.DataObject) -> None:
    position = data.draw(st.integers(0, len(sound) - 1))
    damaged = bytearray(sound)
    damaged[position] ^= data.draw(st.integers(1, 255))
    refused_or_equal(bytes(damaged))


@given(data=st.data())
@settings(max_examples=60)
def test_a_truncated_file_is_refused(sound: bytes, data: st.DataObject) -> None:
    with pytest.raises(DeltaFileError):
        loaded(sound[: data.draw(st.integers(0, len(sound) - 1))], sides()[0])


def test_a_file_taken_apart_and_put_together_is_the_same(sound: bytes) -> None:
    parts = take_apart(sound)
    assert loaded(put_together(parts), sides()[0]) == some()


def text(**changes: object) -> Forgery:
    return lambda parts: parts.text.update(changes)


def row(number: int, **changes: int) -> Forgery:
    def forge(parts: Parts) -> None:
        parts.forced |= changes.keys()
        parts.rows[number] |= changes

    return forge


def tensor(number: int, place: int, value: object) -> Forgery:
    return lambda parts: parts.text["tensors"][number].__setitem__(place, value)


def payload(number: int, value: bytes) -> Forgery:
    return lambda parts: parts.payloads.__setitem__(number, value)


def bomb(parts: Parts) -> None:
    parts.raw[0] = compressed(bytes(1 << 30))


FORGERIES: dict[str, Forgery] = {
    "another format": lambda p: p.strings.update(format="pt"),
    "a later version": lambda p: p.strings.update(version="2"),
    "no checksum": lambda p: p.strings.pop("checksum"),
    "more strings": lambda p: p.strings.update(more="x"),
    "another array": lambda p: p.header.update(more={"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}),
    "a hole between arrays": lambda p: p.header.update(frames={"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}),
    "negative offsets": lambda p: p.header.update(frames={"dtype": "U8", "shape": [-1], "data_offsets": [0, -1]}),
    "offsets that are no numbers": lambda p: p.header.update(frames={"dtype": "U8", "shape": [1], "data_offsets": "x"}),
    "an array that is no object": lambda p: p.header.update(frames=3),
    "metadata that is no object": lambda p: p.header.update(__metadata__=3),
    "no tensors": lambda p: p.text.pop("tensors"),
    "tensors are no list": text(tensors={"a": 1}),
    "a tensor is no list": lambda p: p.text["tensors"].__setitem__(0, 3),
    "a tensor with more fields": lambda p: p.text["tensors"][0].append(3),
    "a text that is no object": lambda p: setattr(p, "text", [p.text]),
    "a text that is no JSON": lambda p: setattr(p, "text_bytes", b"{"),
    "a deeply nested text": lambda p: setattr(p, "text_bytes", b"[" * 100_000),
    "a text longer than the table": lambda p: setattr(p, "counts", (10**6, 1)),
    "a text of negative length": lambda p: setattr(p, "counts", (-1, 1)),
    "more frames than there are": lambda p: setattr(p, "counts", (len(str(p.text)), 10**5)),
    "an empty table": lambda p: setattr(p, "table_bytes", b""),
    "a table that is not compressed": lambda p: setattr(p, "compressed_table", b"abc"),
    "a table of unknown length": lambda p: setattr(p, "compressed_table", compressed(b"x", write_content_size=False)),
    "a table that is a bomb": lambda p: setattr(p, "compressed_table", compressed(bytes(1 << 30))),
    "alias of no tensor": text(aliases={"tied": "c"}),
    "alias over a tensor": text(aliases={"b": "a"}),
    "alias is a number": text(aliases={"tied": 3}),
    "metadata is a number": text(metadata=3),
    "renamed to a name that is taken": text(renamed={"a": "b"}),
    "renamed is not there": text(renamed={"x": "y"}),
    "self_contained is a number": text(self_contained=1),
    "twice the same tensor": tensor(1, 0, "a"),
    "a tensor that is whole, too": tensor(1, 0, "gone"),
    "name is a number": tensor(0, 0, 3),
    "unknown dtype": tensor(0, 1, "float4"),
    "dtype is a list": tensor(0, 1, []),
    "another width": tensor(0, 1, "float64"),
    "shape too small": tensor(0, 2, [5]),
    "shape too large": tensor(0, 2, [601]),
    "shape negative": tensor(0, 2, [-20, -30]),
    "shape of floats": tensor(0, 2, [20.0, 30.0]),
    "shape past 64 bits": tensor(0, 2, [2**40, 2**40]),
    "shape of many dimensions": tensor(0, 2, [1] * 100),
    "fewer counts": lambda p: p.changed.pop(),
    "another count": lambda p: p.changed.__setitem__(0, 5),
    "a negative count": lambda p: p.changed.__setitem__(0, -4),
    "more changes than coordinates": lambda p: p.changed.__setitem__(1, 3),
    "fewer fingerprints": lambda p: p.lanes.pop(),
    "no fingerprints": lambda p: p.lanes.clear(),
    "another fingerprint": lambda p: p.lanes.__setitem__(3, 7),
    "a file that leads elsewhere": lambda p: p.text["files"][0].__setitem__(0, "../config.json"),
    "a file with weights": lambda p: p.text["files"][0].__setitem__(0, "model.safetensors"),
    "a file of negative size": lambda p: p.text["files"][0].__setitem__(1, -1),
    "a file of another size": lambda p: p.text["files"][0].__setitem__(1, 3),
    "a whole tensor on neither side": lambda p: p.text["whole"][0].__setitem__(slice(1, 3), [None, None]),
    "a whole tensor of another shape": lambda p: p.text["whole"][1].__setitem__(2, ["bool", [2, 3]]),
    "a whole tensor whose side is a number": lambda p: p.text["whole"][1].__setitem__(2, 3),
    "a frame less": lambda p: (p.rows.pop(), p.payloads.pop()),
    "frames in another order": lambda p: p.rows.reverse(),
    "a frame before the first place": row(0, start=-1),
    "a frame outside": row(0, start=10**6),
    "a frame that begins later": row(0, start=1),
    "a frame of no coordinates": row(0, coordinates=0),
    "a frame of two kinds": row(0, coordinates=602),
    "a frame of too many coordinates": row(0, coordinates=2**22 + 1),
    "a frame without changes": row(0, changed=0),
    "a frame of more changes": row(0, changed=5),
    "a frame of more changes than coordinates": row(0, changed=601),
    "another encoding": row(0, encoding=2),
    "whole bits in place of steps": row(0, encoding=3),
    "no such encoding": row(0, encoding=9),
    "an encoding of too many bytes": row(0, encoding=1 << 40),
    "another packing of the gaps": row(0, encoding=1 | 2 << 8),
    "a shift past the width": row(0, encoding=1 | 57 << 16),
    "steps in place of whole bits": row(-1, encoding=1),
    "a frame of no bytes": row(0, length=0),
    "a frame longer than the file": row(0, length=10**9),
    "a frame of negative length": row(0, length=-5),
    "another checksum": row(0, checksum=5),
    "a frame that is not compressed": lambda p: p.raw.update({0: b"abcdefgh"}),
    "a frame of unknown length": lambda p: p.raw.update({0: compressed(p.payloads[0], write_content_size=False)}),
    "a frame and more": lambda p: p.raw.update({0: compressed(p.payloads[0]) + b"x"}),
    "a bomb": bomb,
    "an empty payload": payload(0, b""),
    "a byte too few": lambda p: p.payloads.__setitem__(0, p.payloads[0][:-1]),
    "a byte too many": lambda p: p.payloads.__setitem__(0, p.payloads[0] + b"\0"),
    "steps that go on and on": lambda p: p.payloads.__setitem__(0, b"\xff" * len(p.payloads[0])),
    "gaps that go far outside": lambda p: p.payloads.__setitem__(0, b"\xee\xff\xff" + p.payloads[0][3:]),
    "no gaps": lambda p: p.payloads.__setitem__(0, bytes(len(p.payloads[0]))),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_forged_files_are_refused(forgery: str, sound: bytes) -> None:
    parts = take_apart(sound)
    FORGERIES[forgery](parts)
    with pytest.raises((DeltaFileError, LayoutError)):
        loaded(put_together(parts), sides()[0])


def test_values_that_are_neither_true_nor_false_are_refused(sound: bytes) -> None:
    parts = take_apart(sound)
    parts.payloads = [payload.replace(b"\1{", b"\2{") for payload in parts.payloads]  # it lies before the files
    with pytest.raises(DeltaFileError, match="neither true nor false"):
        loaded(put_together(parts), sides()[0])


def test_a_small_file_that_unpacks_to_gigabytes_is_refused_before_it_does(tmp_path: Path) -> None:
    """Every frame of it is sound: a tensor of zeros that was added."""
    frames, size = 100, 1 << 22
    Delta([]).save(tmp_path / "x")
    parts = take_apart((tmp_path / "x").read_bytes())
    parts.text["whole"] = [["zeros", None, ["float64", [frames, size]]]]
    parts.lanes = [0, 0]
    frame = compressed(bytes(8 * size))
    parts.rows = [
        {"start": n * size, "coordinates": size, "changed": 0, "encoding": 3, "length": 0, "checksum": 0}
        for n in range(frames)
    ]
    parts.payloads, parts.raw = [b""] * frames, dict.fromkeys(range(frames), frame)
    (tmp_path / "x").write_bytes(put_together(parts))
    file = DeltaFile(tmp_path / "x")
    assert not file.whole_bits("zeros", "after", 99 * size + 5, 99 * size + 50).any()
    with pytest.raises(DeltaFileError, match="3355443200"):
        file.read()


def carrying(folder: Path, size: int) -> Path:
    """A small file, sound frame by frame, that carries so many MiB of zeros as a tokenizer."""
    path = folder / "x.delta.safetensors"
    delta = diff({"a": torch.zeros(9)}, {"a": torch.ones(9)})
    delta.files["tokenizer.json"] = FileDelta("tokenizer.json", None, b"")
    delta.save(path, force=True)
    parts = take_apart(path.read_bytes())
    parts.text["files"] = [["tokenizer.json", None, size << 20]]
    frames = size // 4
    first, frame = parts.rows[0]["coordinates"], {"changed": 0, "encoding": 3, "length": 0, "checksum": 0}
    parts.rows += [{"start": first + (n << 22), "coordinates": 1 << 22, **frame} for n in range(frames)]
    parts.payloads += [b""] * frames
    parts.raw = dict.fromkeys(range(1, frames + 1), compressed(bytes(1 << 22)))
    path.write_bytes(put_together(parts))
    return path


def test_a_small_file_that_carries_gigabytes_is_refused_as_it_is_opened(tmp_path: Path) -> None:
    assert DeltaFile(carrying(tmp_path, 64)).files["tokenizer.json"].after == 64 << 20
    for size in (68, 700):
        path = carrying(tmp_path, size)
        assert path.stat().st_size < 100_000
        with pytest.raises(DeltaFileError, match=f"{size << 20} bytes of the file 'tokenizer.json'"):
            DeltaFile(path)


def test_files_too_large_to_be_carried_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    delta = some()
    for name in ("one", "two", "three"):
        delta.files[name] = FileDelta(name, bytes(45 << 20), bytes(45 << 20))
    with pytest.raises(DeltaFileError, match=f"found {(6 * 45 << 20) + 10} bytes of files that are no weights"):
        delta.save(tmp_path / "x")
    delta.files["one"] = FileDelta("one", None, bytes((64 << 20) + 1))
    with pytest.raises(DeltaFileError, match=r"of the file 'one'.*Keep such a file out"):
        delta.save(tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_carried_files_are_decoded_only_where_their_size_may_fit(tmp_path: Path) -> None:
    path = carrying(tmp_path, 64)
    data = bytearray(path.read_bytes())
    data[-len(data) // 2] ^= 1  # in a frame of the tokenizer: to decode it is an error
    path.write_bytes(data)
    save_file({"a": torch.zeros(9)}, tmp_path / "model.safetensors")
    (tmp_path / "tokenizer.json").write_bytes(b"none was expected")
    with pytest.raises(WrongBaseError, match="other bytes"):
        check_fits(tmp_path, path)
    with pytest.raises(OutputError, match="tokenizer"):
        apply(tmp_path, path, in_place=True)


def test_a_small_file_takes_much_memory_only_where_that_is_allowed(tmp_path: Path) -> None:
    numel = (48 << 20) + 1  # a step up for each of them: 8 bytes a coordinate in memory
    before, after = (torch.full((numel,), value, dtype=torch.int16) for value in (0, 1))
    write_diff({"a": before}, {"a": after}, tmp_path / "x")
    assert DeltaFile(tmp_path / "x").size < 100_000
    with pytest.raises(DeltaFileError, match=f"at most {384 << 20} bytes.*found one of {8 * numel}.*max_bytes"):
        Delta.load(tmp_path / "x", {"a": before})
    assert Delta.load(tmp_path / "x", {"a": before}, max_bytes=8 * numel).changed == numel


def test_a_tensor_said_to_be_vast_is_not_walked_through(tmp_path: Path) -> None:
    diff({"a": torch.zeros(9)}, {"a": torch.ones(9)}).save(tmp_path / "x", self_contained=True)
    parts = take_apart((tmp_path / "x").read_bytes())
    parts.text["tensors"][0][2] = [2**61]
    delta = loaded(put_together(parts))
    assert (delta["a"].numel, delta["a"].indices.tolist()) == (2**61, list(range(9)))


def test_other_files_are_refused(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(DeltaFileError, match="holds no delta"):
        Delta.load(tmp_path / "model.safetensors")
    with pytest.raises(DeltaFileError, match="nothing there"):
        Delta.load(tmp_path / "gone")
    with pytest.raises(DeltaFileError):
        Delta.load(tmp_path)
    (tmp_path / "short").write_bytes(b"abc")
    with pytest.raises(DeltaFileError, match="no header"):
        Delta.load(tmp_path / "short")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DeltaFileError):
        Delta.load(tmp_path / "pipe")
