"""Released tools on a pair of checkpoints: how large, how fast, how much memory, and whether the bits come back.

Run by `sizes_and_speeds.py` in a process of its own, with the Python that has the tools (`bench-deltas` in setup.py):
`python -m benchmarks.delta_files.peers weightscope BEFORE AFTER`, or `... weightscope --special` for the values that a
tool loses. It prints one line of JSON, and exits with code 3 where the tool is missing.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.metadata
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from benchmarks.delta_files.special_values import CASES, write_case
from benchmarks.memory import resident

NO_PEER = 3
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
    metas = {name: tensor.dtype for name, tensor in _tensors(before).items()}
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


PEERS = {
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


def measure(peer: Peer, before: Path, after: Path) -> dict[str, Any]:
    """Pack and unpack once, in a temporary folder beside `after`.

    Returns:
        `bytes` of the files, `seconds` of "pack" and "unpack", `peak_bytes` of this process and its children after
        both, `same`: whether every bit came back.
    """
    with tempfile.TemporaryDirectory(dir=after.parent) as work:
        patch, out = Path(work, "patch"), Path(work, "out")
        patch.mkdir()
        out.mkdir()
        start = time.perf_counter()
        peer.pack(before, after, patch)
        packed = time.perf_counter()
        peer.unpack(before, patch, out)
        unpacked = time.perf_counter()
        return {
            "bytes": sum(file.stat().st_size for file in patch.iterdir()),
            "seconds": {"pack": packed - start, "unpack": unpacked - packed},
            "peak_bytes": peak_of_all(),
            "same": same_bits(_tensors(out), _tensors(after)),
        }


def peak_of_all() -> int:
    """Peak resident memory of this process, or of its largest child where that took more, in bytes."""
    import resource

    return max(resident("VmHWM"), 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)


def special(peer: Peer) -> dict[str, str]:
    """Tell, for each kind of value: "kept", "lost" (silently), or "refused" (an exception)."""
    found = {}
    for case in CASES:
        with tempfile.TemporaryDirectory() as work:
            before, after = write_case(Path(work), case)
            try:
                found[case] = "kept" if measure(peer, before, after)["same"] else "lost"
            except Exception:  # whichever way a tool says no
                found[case] = "refused"
    return found


def same_bits(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    """Whether names, dtypes, shapes and bits are equal."""
    return found.keys() == expected.keys() and all(
        (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        and torch.equal(_bytes(found[name]), _bytes(tensor))
        for name, tensor in expected.items()
    )


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    found = {}
    for file in _weights(folder):
        with safe_open(file, framework="pt") as opened:
            found |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    return found


def main() -> None:
    """Print the measurement of one tool as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peer", choices=list(PEERS))
    parser.add_argument("folders", type=Path, nargs="*", help="before and after")
    parser.add_argument("--special", action="store_true", help="which values it loses, instead")
    options = parser.parse_args()
    peer = PEERS[options.peer]
    found = version(peer)
    if found is None:
        sys.exit(NO_PEER)
    with contextlib.redirect_stdout(io.StringIO()):  # some tools print
        measured = special(peer) if options.special else measure(peer, *options.folders)
    sys.stdout.write(json.dumps({"version": found, "measured": measured}) + "\n")


if __name__ == "__main__":
    main()
