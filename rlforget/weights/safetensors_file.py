"""One safetensors file: where each tensor lies, and how to write one tensor after another.

The format is that of https://github.com/huggingface/safetensors: eight bytes that give the header's length, a JSON
header, then the tensors' bytes. The safetensors package validates a file; what is here reads the offsets, which the
package does not tell, and writes in a stream, which it cannot.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open

from rlforget.errors import NotACheckpointError
from rlforget.weights.layout import TensorMeta

DTYPE_OF_CODE: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
CODE_OF_DTYPE = {dtype: code for code, dtype in DTYPE_OF_CODE.items()}

_ALIGNMENT = 8  # of the first tensor's first byte, as the format's own writer does


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies in a file: its first byte, and the one after its last."""

    meta: TensorMeta
    start: int
    stop: int


@dataclass(frozen=True)
class Header:
    """The header of a safetensors file.

    Args:
        entries: The tensors, in the order of their bytes.
        metadata: The file's own strings.
        data_start: Position of the first tensor's first byte: the length of all that goes before.
    """

    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]
    data_start: int


def read_header(path: Path) -> Header:
    """Return the header of a safetensors file, validated by the safetensors package.

    Raises:
        NotACheckpointError: The file is not there, is truncated or malformed, or holds a dtype outside `DTYPES`.
    """
    try:
        if path.exists() and not path.is_file():
            raise OSError("no plain file")  # opening a pipe would wait for its other end
        with safe_open(path, framework="pt"):  # checks the sizes, offsets and lengths against each other
            pass
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            raw: dict[str, Any] = json.loads(file.read(length))
    except (SafetensorError, OSError, ValueError) as error:
        raise NotACheckpointError(
            str(path), expected="a whole safetensors file", found=str(error), fix="Fetch or write the file again."
        ) from error
    metadata = raw.pop("__metadata__", None) or {}
    data_start = 8 + length
    entries = {
        name: Entry(_meta(path, name, raw[name]), *(data_start + offset for offset in raw[name]["data_offsets"]))
        for name in sorted(raw, key=lambda name: (raw[name]["data_offsets"], name))
    }
    return Header(entries, metadata, data_start)


def _meta(path: Path, name: str, entry: Mapping[str, Any]) -> TensorMeta:
    if entry["dtype"] not in DTYPE_OF_CODE:
        raise NotACheckpointError(
            f"{path}, tensor {name!r}",
            expected=f"a dtype among {', '.join(DTYPE_OF_CODE)}",
            found=entry["dtype"],
            fix="Convert the tensor to one of these.",
        )
    return TensorMeta(DTYPE_OF_CODE[entry["dtype"]], tuple(entry["shape"]))


def write_tensors(
    file: BinaryIO,
    metas: Mapping[str, TensorMeta],
    tensor: Callable[[str], torch.Tensor],
    metadata: Mapping[str, str],
) -> None:
    """Write a safetensors file tensor by tensor, so that one of them is held in memory at a time.

    Args:
        file: An empty file, open for writing.
        metas: Dtype and shape of each tensor.
        tensor: Returns the values of a tensor.
        metadata: Strings for the file's header.
    """
    text, order = header_text(metas, metadata)
    file.write(text)
    for name in order:
        flat = tensor(name).detach().cpu().contiguous().reshape(-1)
        if flat.numel():
            file.write(flat.view(torch.uint8).numpy().data)


def header_text(metas: Mapping[str, TensorMeta], metadata: Mapping[str, str]) -> tuple[bytes, list[str]]:
    """Lay out a file.

    Args:
        metas: Dtype and shape of each tensor.
        metadata: Strings for the header.

    Returns:
        All bytes that go before the first tensor's, and the names in the order in which their bytes follow.
    """
    # Widest first, so that every tensor starts at a multiple of its own item size.
    order = sorted(metas, key=lambda name: (-metas[name].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name in order:
        meta = metas[name]
        stop = offset + meta.numel * meta.dtype.itemsize
        header[name] = {
            "dtype": CODE_OF_DTYPE[meta.dtype],
            "shape": list(meta.shape),
            "data_offsets": [offset, stop],
        }
        offset = stop
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text, order
