"""Ours and released tools, each as its own documentation has it used.

The tools are in the extra `bench-deltas`, and are imported only where they are used.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.delta_files.same_bits import tensors_of

THREADS = len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Peer:
    """A tool, as its own documentation has it used.

    Attributes:
        package: Whose version is told; None for a program on the PATH.
        pack: Given the folders before and after, writes files into a third.
        unpack: Given the folder before and those files, writes the checkpoint after into a third.
    """

    package: str | None
    pack: Callable[[Path, Path, Path], None]
    unpack: Callable[[Path, Path, Path], None]


def _weights(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def _pack_weightscope(before: Path, after: Path, patch: Path) -> None:
    from weightscope.export_patch import export_patch

    export_patch(str(before), str(after), patch / "patch.wsp", threshold=0.0)  # its default of 1e-6 drops changes


def _unpack_weightscope(before: Path, patch: Path, out: Path) -> None:
    from weightscope.apply_patch import apply_patch

    apply_patch(patch / "patch.wsp", str(before), out / "model.safetensors")


def _pack_deltatensors(before: Path, after: Path, patch: Path) -> None:
    from deltatensors import save_delta_from_paths

    save_delta_from_paths(patch / "patch.wdelta", after, before, strategy="sparse")


def _unpack_deltatensors(before: Path, patch: Path, out: Path) -> None:
    from deltatensors import load_delta_from_paths

    # It gives float32; a user casts that to the dtype of the checkpoint.
    metas = {name: tensor.dtype for name, tensor in tensors_of(before).items()}
    arrays = load_delta_from_paths(patch / "patch.wdelta", before)
    tensors = {name: torch.from_numpy(array).to(metas[name]) for name, array in arrays.items()}
    save_file(tensors, out / "model.safetensors")


def _zipnn() -> Any:
    from zipnn import ZipNN

    return ZipNN(input_format="byte", bytearray_dtype="bfloat16", delta_compressed_type="byte", threads=THREADS)


def _pack_zipnn(before: Path, after: Path, patch: Path) -> None:
    for file in _weights(after):
        packed = _zipnn().compress(file.read_bytes(), delta_second_data=(before / file.name).read_bytes())
        (patch / file.name).write_bytes(packed)


def _unpack_zipnn(before: Path, patch: Path, out: Path) -> None:
    for file in _weights(patch):
        whole = _zipnn().decompress(file.read_bytes(), delta_second_data=(before / file.name).read_bytes())
        (out / file.name).write_bytes(whole)


def _zstd(*arguments: str) -> None:
    subprocess.run(["zstd", "--quiet", "--force", *arguments], check=True)


def _pack_zstd(before: Path, after: Path, patch: Path) -> None:
    for file in _weights(after):
        _zstd(f"-T{THREADS}", str(file), "-o", str(patch / file.name))


def _unpack_zstd(before: Path, patch: Path, out: Path) -> None:
    for file in _weights(patch):
        _zstd("--decompress", str(file), "-o", str(out / file.name))


def _pack_zstd_patch(before: Path, after: Path, patch: Path) -> None:
    for file in _weights(after):
        source = f"--patch-from={before / file.name}"
        _zstd(f"-T{THREADS}", "--long=31", "--memory=2048MB", source, str(file), "-o", str(patch / file.name))


def _unpack_zstd_patch(before: Path, patch: Path, out: Path) -> None:
    for file in _weights(patch):
        source = f"--patch-from={before / file.name}"
        _zstd("--decompress", "--long=31", "--memory=2048MB", source, str(file), "-o", str(out / file.name))


def _pack_rlforget(before: Path, after: Path, patch: Path) -> None:
    from benchmarks.delta_files.ours import pack

    pack(before, after, patch / "patch.delta.safetensors")


def _unpack_rlforget(before: Path, patch: Path, out: Path) -> None:
    from benchmarks.delta_files.ours import unpack

    unpack(before, patch / "patch.delta.safetensors", out)


PEERS = {
    "rlforget": Peer("rlforget", _pack_rlforget, _unpack_rlforget),
    "zstd": Peer(None, _pack_zstd, _unpack_zstd),
    "zstd --patch-from": Peer(None, _pack_zstd_patch, _unpack_zstd_patch),
    "zipnn": Peer("zipnn", _pack_zipnn, _unpack_zipnn),
    "weightscope": Peer("weightscope", _pack_weightscope, _unpack_weightscope),
    "deltatensors": Peer("deltatensors", _pack_deltatensors, _unpack_deltatensors),
}


def version(peer: Peer) -> str | None:
    """Return the tool's version; None where it is not installed."""
    if peer.package is None:
        found = shutil.which("zstd") and subprocess.run(["zstd", "-V"], capture_output=True, text=True, check=True)
        return found.stdout.split(",")[0].split()[-1].removeprefix("v") if found else None
    try:
        importlib.import_module(peer.package)
        return importlib.metadata.version(peer.package)
    except (ImportError, importlib.metadata.PackageNotFoundError):
        return None
