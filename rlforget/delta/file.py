"""The delta file: plain safetensors, lossless, without pickle.

The header's metadata has four strings: `format` = "rlforget.delta", `version` = "1", `delta`, a JSON object in ASCII,
and `sha256`, the checksum of its text in hexadecimal. The object is

    {"tensors": [{"name": ..., "dtype": ..., "shape": [...], "changed": ...,
                  "fingerprint": {"before": [int, int], "after": [int, int]}}, ...],
     "aliases": {name: canonical name},
     "metadata": {string: string}}

For the i-th tensor, where `changed` > 0, the file holds `i.indices` (int32; int64 from 2**31 coordinates on; strictly
ascending), `i.before` and `i.after` (the bits as integers of the dtype's width). Model names stand in the JSON alone,
so they may hold any characters.

The fingerprint after is that of the fingerprint before with the patch applied (see `rlforget_kernels.fingerprint`),
so it also guards the indices and bits against damage.
"""

from __future__ import annotations

import hashlib
import json
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from rlforget.delta.delta import Delta
from rlforget.delta.tensor_delta import Fingerprint, TensorDelta
from rlforget.errors import DeltaFileError, NotACheckpointError, RlforgetError
from rlforget.weights import DTYPES, TensorMeta
from rlforget.weights.atomic import new_file
from rlforget.weights.safetensors_file import read_header, write_tensors
from rlforget_kernels.common.bits import bits_dtype, index_dtype
from rlforget_kernels.fingerprint import fingerprint_after_patch

FORMAT = "rlforget.delta"
VERSION = "1"

_DTYPE_OF_NAME = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES}
_CHUNK = 1 << 16  # coordinates checked at a time: they and what is made of them fit a cache


class _Forged(Exception):
    """What is wrong with a delta file."""


_FAULTS = (_Forged, RlforgetError, SafetensorError, OSError, KeyError, TypeError, ValueError, RecursionError)


def save(delta: Delta, path: str | PathLike[str], *, self_contained: bool = True, force: bool = False) -> None:
    """Write a delta to `path`, whole or not at all; see `Delta.save`."""
    parts = {
        f"{position}.{part}": values
        for position, tensor in enumerate(delta.values())
        if tensor.changed
        for part, values in (
            ("indices", tensor.indices),
            ("before", tensor.before_bits),
            ("after", tensor.after_bits),
        )
    }
    description = {
        "tensors": [_describe(tensor) for tensor in delta.values()],
        "aliases": delta.aliases,
        "metadata": delta.metadata,
    }
    text = json.dumps(description, separators=(",", ":"))
    header = {"format": FORMAT, "version": VERSION, "delta": text, "sha256": _checksum(text)}
    metas = {key: TensorMeta(values.dtype, tuple(values.shape)) for key, values in parts.items()}
    with new_file(Path(path), force=force) as file:
        write_tensors(file, metas, parts.__getitem__, header)


def load(path: str | PathLike[str], base: object = None) -> Delta:
    """Read a delta, memory-mapped, and check all of it; see `Delta.load`."""
    try:
        header = read_header(Path(path))
    except NotACheckpointError as error:
        raise DeltaFileError(str(path), expected="a whole delta file", found=error.found, fix=error.fix) from error
    try:
        description = _description(header.metadata)
        entries = description["tensors"]
        with safe_open(path, framework="pt", device="cpu") as file:
            tensors = [_read(file, position, entry) for position, entry in enumerate(entries)]
        used = {f"{i}.{part}" for i, t in enumerate(tensors) if t.changed for part in ("indices", "before", "after")}
        _require(header.entries.keys() == used, "tensors that its description does not mention")
        names = {tensor.name for tensor in tensors}
        _require(len(names) == len(tensors), "a tensor described twice")
        aliases = _strings(description["aliases"])
        _require(names.isdisjoint(aliases) and names.issuperset(aliases.values()), "an alias of no tensor")
        return Delta(tensors, aliases=aliases, metadata=_strings(description["metadata"]))
    except _FAULTS as error:
        found = str(error) if isinstance(error, _Forged | RlforgetError) else f"{type(error).__name__}: {error}"
        raise DeltaFileError(
            str(path),
            expected=f"a sound {FORMAT} file of version {VERSION}",
            found=found,
            fix="Make the delta again with rlforget.diff.",
        ) from error


def _describe(tensor: TensorDelta) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "shape": list(tensor.shape),
        "changed": tensor.changed,
        "fingerprint": {"before": tensor.fingerprint_before, "after": tensor.fingerprint_after},
    }


def _description(metadata: Any) -> dict[str, Any]:
    _require(metadata.get("format") == FORMAT, f"format {metadata.get('format')!r}")
    _require(metadata.get("version") == VERSION, f"version {metadata.get('version')!r}")
    _require(metadata["sha256"] == _checksum(metadata["delta"]), "a description that does not fit its checksum")
    description = json.loads(metadata["delta"])
    _require(isinstance(description, dict) and isinstance(description.get("tensors"), list), "no list of tensors")
    result: dict[str, Any] = description
    return result


def _read(file: Any, position: int, entry: Any) -> TensorDelta:
    """Build the tensor at `position` from its description and its three tensors, and check them."""
    name, shape, changed = entry["name"], entry["shape"], entry["changed"]
    _require(isinstance(name, str), "a name that is no string")
    _require(entry["dtype"] in _DTYPE_OF_NAME, f"dtype {entry['dtype']!r} of {name!r}")
    _require(isinstance(shape, list) and all(_is_count(size) for size in shape), f"shape {shape!r} of {name!r}")
    dtype = _DTYPE_OF_NAME[entry["dtype"]]
    numel = TensorMeta(dtype, tuple(shape)).numel
    _require(numel < 2**63, f"shape {shape!r} of {name!r}")
    if changed == 0:
        indices = torch.empty(0, dtype=index_dtype(numel))
        before = after = torch.empty(0, dtype=bits_dtype(dtype))
    else:
        indices, before, after = (file.get_tensor(f"{position}.{part}") for part in ("indices", "before", "after"))
    _require(_is_count(changed) and changed == indices.numel(), f"{indices.numel()} and not {changed!r} in {name!r}")
    tensor = TensorDelta(
        name=name,
        dtype=dtype,
        shape=tuple(shape),
        indices=indices,
        before_bits=before,
        after_bits=after,
        fingerprint_before=_fingerprint(entry["fingerprint"]["before"]),
        fingerprint_after=_fingerprint(entry["fingerprint"]["after"]),
    )
    _check_coordinates(tensor)
    return tensor


def _check_coordinates(tensor: TensorDelta) -> None:
    patched = torch.tensor(tensor.fingerprint_before)
    for start in range(0, tensor.changed, _CHUNK):
        chunk = slice(start, start + _CHUNK)
        indices, before, after = tensor.indices[chunk], tensor.before_bits[chunk], tensor.after_bits[chunk]
        ascending = (tensor.indices[start + 1 : start + _CHUNK + 1] > indices[: tensor.changed - start - 1]).all()
        _require(bool(ascending), f"indices of {tensor.name!r} that do not ascend")
        _require(not bool((before == after).any()), f"a coordinate of {tensor.name!r} that did not change")
        patched = fingerprint_after_patch(patched, indices, before, after)
    _require(
        tuple(patched.tolist()) == tensor.fingerprint_after, f"bits of {tensor.name!r} that do not fit its fingerprints"
    )


def _fingerprint(value: Any) -> Fingerprint:
    first, second = value
    in_range = all(type(lane) is int and -(2**63) <= lane < 2**63 for lane in (first, second))
    _require(in_range, "a fingerprint that is no pair of 64-bit integers")
    return first, second


def _strings(value: Any) -> dict[str, str]:
    sound = isinstance(value, dict) and all(isinstance(text, str) for text in value.values())
    _require(sound, "aliases or metadata that are no strings")
    result: dict[str, str] = value
    return result


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _require(condition: bool, fault: str) -> None:
    if not condition:
        raise _Forged(fault)


class DeltaFile:
    """A delta on disk; see the format, which is being replaced."""

    def __init__(self, path: str | PathLike[str]) -> None:
        self._delta = load(path)

    def read(self, base: Any) -> Delta:
        """Return the delta."""
        return self._delta
