"""Read a delta file without rlforget: docs/format.md in plain Python. Print what changed, or make the weights after.

python examples/read_delta.py math.delta.safetensors
python examples/read_delta.py math.delta.safetensors before.safetensors after.safetensors
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import zstandard
from safetensors import safe_open

CODES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3"}
CODES |= {"float8_e5m2": "F8_E5M2", "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8", "uint8": "U8"}
CODES |= {"bool": "BOOL"}
WIDTHS = {"float64": 8, "int64": 8, "float32": 4, "int32": 4, "float16": 2, "bfloat16": 2, "int16": 2}  # others 1
KINDS = {1: "sparse", 2: "dense", 3: "whole"}
NIBBLES, BYTES, PLANES = 0, 1, 2


class DeltaFile:
    """The parts of a delta file. Trusts it: a reader for files of strangers must check every number."""

    def __init__(self, path: str) -> None:
        with safe_open(path, framework="numpy") as file:
            strings = file.metadata()
            assert (strings["format"], strings["version"]) == ("rlforget.delta", "1"), strings
            self.data, table = file.get_tensor("frames"), decompress(file.get_tensor("table"))
        length, count = table[:16].view("<i8").tolist()
        self.text = json.loads(table[16 : 16 + length].tobytes())
        numbers = np.frombuffer(table[16 + length :].tobytes(), "<i8")
        self.frames = numbers[: 6 * count].reshape(6, count).T.tolist()
        self.changed = numbers[6 * count :][: len(self.text["tensors"])].tolist()
        self.things = list(self._line())  # (kind, name, side, dtype, shape, first place, place after the last)

    def _line(self):
        place = 0
        things = [("tensor", name, "", dtype, shape) for name, dtype, shape in self.text["tensors"]]
        for name, *sides in self.text["whole"]:
            for side, described in zip(("before", "after"), sides, strict=True):
                if described and (side == "after" or self.text["self_contained"]):
                    things.append(("whole", name, side, *described))
        for name, *sizes in self.text["files"]:
            things += [
                ("file", name, side, "uint8", [n or 0]) for side, n in zip(("before", "after"), sizes, strict=True)
            ]
        for thing in things:
            start, place = place, place + math.prod(thing[4])
            yield (*thing, start, place)

    def decode(self):
        """Yield where each frame's run begins, its length, what lies there, and what makes bits after from before."""
        offset = 0
        for start, size, changed, encoding, length, _ in self.frames:
            payload = decompress(self.data[offset : offset + length])
            offset += length
            inside = [thing for thing in self.things if thing[5] < start + size and thing[6] > start]
            yield start, size, inside, self._change(payload, encoding, size, changed, inside[0][3])

    @staticmethod
    def _change(payload, encoding, size, changed, dtype):
        kind, gap_mode, gap_shift, mode, shift = encoding.to_bytes(5, "little")
        width, floating = WIDTHS.get(dtype, 1), "float" in dtype
        if KINDS[kind] == "whole":
            if mode == PLANES:
                after, _ = unpack(payload, 0, size, PLANES, 0, width)
            else:
                after = np.frombuffer(payload[: size * width].tobytes(), f"<u{width}")
            return lambda bits: after
        if KINDS[kind] == "dense":
            codes, _ = unpack(payload, 0, size, mode, shift, width)
            return lambda bits: stepped(bits, codes, floating)
        gaps, at = unpack(payload, 0, changed, gap_mode, gap_shift, 4)
        places = np.cumsum(gaps.astype("i8") + 1) - 1
        codes = unpack(payload, at, changed, mode, shift, width)[0] + np.array(1, f"u{width}")

        def change(bits):
            bits = bits.copy()
            bits[places] = stepped(bits[places], codes, floating)
            return bits

        return change


def decompress(data):
    return np.frombuffer(zstandard.ZstdDecompressor().decompress(data.tobytes()), "u1")


def unpack(payload, at, count, mode, shift, width):
    """Take `count` packed numbers from a payload: the numbers, and the place after their streams."""
    low = payload[at : at + -(-count * shift // 8)]
    at, left, levels = at + low.size, count, []
    for level in range(mode, PLANES):
        size = -(-left // 2) if level == NIBBLES else left
        symbols = payload[at : at + size]
        if level == NIBBLES:
            symbols = np.stack([symbols & 15, symbols >> 4], 1).reshape(-1)[:left]
        marks = symbols == (15 if level == NIBBLES else 255)
        levels.append((symbols.astype(f"u{width}"), marks))
        at, left = at + size, int(marks.sum())
    planes = payload[at : at + left * width].reshape(width, left)
    numbers = np.ascontiguousarray(planes.T).reshape(-1).view(f"<u{width}")
    for symbols, marks in reversed(levels):
        symbols[marks] += numbers
        numbers = symbols
    if shift:
        bits = np.unpackbits(low, bitorder="little")[: count * shift].reshape(count, shift).astype("u8")
        below = (bits << np.arange(shift, dtype="u8")).sum(1, dtype="u8")
        numbers = (numbers.astype("u8") << np.uint64(shift) | below).astype(f"u{width}")
    return numbers, at + left * width


def image(bits, floating):
    """The place of each value in the order of all values of its dtype; the image of that is the value again."""
    signed = bits.view(f"i{bits.itemsize}")
    return np.where(signed < 0, signed ^ np.iinfo(signed.dtype).max, signed).view(bits.dtype) if floating else bits


def stepped(bits, codes, floating):
    one = np.array(1, codes.dtype)
    return image(image(bits, floating) + ((codes >> one) ^ (0 - (codes & one))), floating)


def read_safetensors(path: str):
    """Return {name: (code of the dtype, shape, bytes)}: numpy has no bfloat16."""
    content = np.fromfile(path, "u1")
    size = int(content[:8].view("<u8")[0])
    header = json.loads(content[8 : 8 + size].tobytes())
    header.pop("__metadata__", None)
    data = content[8 + size :]
    return {name: (t["dtype"], t["shape"], data[slice(*t["data_offsets"])]) for name, t in header.items()}


def write_safetensors(path: str, tensors) -> None:
    header, place = {}, 0
    for name, (code, shape, data) in tensors.items():
        header[name] = {"dtype": code, "shape": shape, "data_offsets": [place, place + data.size]}
        place += data.size
    text = json.dumps(header).encode()
    Path(path).write_bytes(len(text).to_bytes(8, "little") + text + b"".join(t[2].tobytes() for t in tensors.values()))


def rebuild(file: DeltaFile, before):
    """Return the tensors after, from those before."""
    bits = {}
    for kind, name, side, dtype, shape, *_ in file.things:
        width = WIDTHS.get(dtype, 1)
        source = np.array(before[name][2]) if kind == "tensor" else np.zeros(math.prod(shape) * width, "u1")
        bits[kind, name, side] = source.view(f"<u{width}")
    for start, size, inside, change in file.decode():
        shares = [
            (thing[:3], max(start, thing[5]) - thing[5], min(start + size, thing[6]) - thing[5]) for thing in inside
        ]
        after = change(np.concatenate([bits[key][first:last] for key, first, last in shares]))
        for key, first, last in shares:
            bits[key][first:last], after = after[: last - first], after[last - first :]
    renamed = file.text["renamed"]
    return {
        renamed.get(name, name): (CODES[dtype], shape, bits[kind, name, side].view("u1"))
        for kind, name, side, dtype, shape, *_ in file.things
        if kind == "tensor" or (kind == "whole" and side == "after")
    }


def main(path: str, before: str | None = None, after: str | None = None) -> None:
    file = DeltaFile(path)
    for (name, dtype, shape), changed in zip(file.text["tensors"], file.changed, strict=True):
        print(f"{changed:12} of {math.prod(shape):12} changed  {name} {dtype}{shape}")
    for name, *sides in file.text["whole"]:
        print(f"{'a tensor as a whole':29} changed  {name} {' -> '.join(str(side) for side in sides)}")
    for name, *sizes in file.text["files"]:
        print(f"{'a file':29} changed  {name} {' -> '.join(str(size) for size in sizes)} bytes")
    if before and after:
        write_safetensors(after, rebuild(file, read_safetensors(before)))


if __name__ == "__main__":
    main(*sys.argv[1:])
