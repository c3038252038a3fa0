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
WIDTHS = {name: {"64": 8, "32": 4, "16": 2}.get(name[-2:], 1) for name in CODES}
SPARSE, DENSE, WHOLE = 1, 2, 3
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
        self.line = list(self._line())

    def _line(self):
        """Yield what lies on the line: (kind, name, side), dtype, number of elements, first place."""
        things = [(("tensor", name, ""), dtype, shape) for name, dtype, shape in self.text["tensors"]]
        for name, *sides in self.text["whole"]:
            for side, described in zip(("before", "after"), sides, strict=True):
                if described and (side == "after" or self.text["self_contained"]):
                    things.append((("whole", name, side), *described))
        for name, *sizes in self.text["files"]:
            things += [(("file", name, side), "uint8", [size or 0]) for side, size in enumerate(sizes)]
        place = 0
        for key, dtype, shape in things:
            yield key, dtype, math.prod(shape), place
            place += math.prod(shape)

    def decode(self):
        """Yield, for each frame, the shares (key, start, stop) of things in its run, and what makes their bits new."""
        offset = 0
        for start, size, changed, encoding, length, _ in self.frames:
            inside = [thing for thing in self.line if thing[3] < start + size and thing[3] + thing[2] > start]
            shares = [(key, max(start - at, 0), min(start + size - at, count)) for key, _, count, at in inside]
            payload, offset = decompress(self.data[offset : offset + length]), offset + length
            yield shares, changer(payload, encoding, size, changed, inside[0][1])


def changer(payload, encoding, size, changed, dtype):
    """Return the function from the bits of a run before to those after."""
    kind, gap_mode, gap_shift, mode, shift = encoding.to_bytes(5, "little")
    width, floating = WIDTHS[dtype], "float" in dtype
    if kind == WHOLE and mode != PLANES:
        return lambda bits: payload[: size * width].copy().view(f"<u{width}")
    if kind != SPARSE:
        numbers, _ = unpack(payload, 0, size, mode, shift, width)
        return lambda bits: numbers if kind == WHOLE else stepped(bits, numbers, floating)
    gaps, at = unpack(payload, 0, changed, gap_mode, gap_shift, 4)
    codes = np.zeros(size, f"u{width}")  # 0: no step
    codes[np.cumsum(gaps.astype("i8") + 1) - 1] = unpack(payload, at, changed, mode, shift, width)[0] + 1
    return lambda bits: stepped(bits, codes, floating)


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
    for key, dtype, count, _ in file.line:
        source = np.array(before[key[1]][2]) if key[0] == "tensor" else np.zeros(count * WIDTHS[dtype], "u1")
        bits[key] = source.view(f"<u{WIDTHS[dtype]}")
    for shares, change in file.decode():
        after = change(np.concatenate([bits[key][first:last] for key, first, last in shares]))
        for key, first, last in shares:
            bits[key][first:last], after = after[: last - first], after[last - first :]
    kept = [(name, dtype, shape, bits["tensor", name, ""]) for name, dtype, shape in file.text["tensors"]]
    whole = [(name, *after, bits["whole", name, "after"]) for name, _, after in file.text["whole"] if after]
    new_name = file.text["renamed"]
    return {new_name.get(name, name): (CODES[dtype], shape, now.view("u1")) for name, dtype, shape, now in kept + whole}


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
