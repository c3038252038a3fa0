"""A folder of safetensors in the layout of transformers: one file, or shards of bounded size and their index."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from torch import Tensor

from rlforget.weights import TensorMeta
from rlforget.weights.atomic import new_folder
from rlforget.weights.checkpoint_files import INDEX_FILE, SINGLE_FILE
from rlforget.weights.safetensors_file import header_text
from rlforget_kernels.common.bits import as_bits

LARGEST_SHARD = 5 * 10**9
"""Bytes of tensors that a file holds at most, unless one tensor alone has more; as transformers has it."""


def planned(metas: Mapping[str, TensorMeta], largest: int = LARGEST_SHARD) -> dict[str, list[str]]:
    """Return {file: its tensors}, in order."""
    groups: list[list[str]] = [[]]
    room = largest
    for name, meta in metas.items():
        size = meta.numel * meta.dtype.itemsize
        if groups[-1] and size > room:
            groups.append([])
            room = largest
        groups[-1].append(name)
        room -= size
    if len(groups) == 1:
        return {SINGLE_FILE: groups[0]}
    return {f"model-{number:05}-of-{len(groups):05}.safetensors": group for number, group in enumerate(groups, 1)}


def write_folder(
    path: Path,
    metas: Mapping[str, TensorMeta],
    parts: Callable[[str], Iterable[Tensor]],
    files: Mapping[str, Path | bytes],
    *,
    aliases: Mapping[str, str],
    force: bool,
    largest: int = LARGEST_SHARD,
) -> None:
    """Write tensors range by range; the folder appears whole or not at all.

    Args:
        path: The folder to create.
        metas: Dtype and shape of each tensor.
        parts: Returns the values of a tensor in order, as 1-D tensors of its dtype.
        files: Other files to put beside, as paths or bytes.
        aliases: Further names of tied tensors, noted in the headers as `safetensors.torch.save_model` does.
        force: Replace a checkpoint folder that is there.
        largest: Bytes a file.

    Raises:
        OutputError: `path` exists and may not be replaced, or it cannot be written.
    """
    plan = planned(metas, largest)
    with new_folder(path, force=force, brings={*plan, *files, INDEX_FILE}) as folder:
        for file, names in plan.items():
            ties = {alias: name for alias, name in aliases.items() if name in names}
            text, order = header_text({name: metas[name] for name in names}, {**ties, "format": "pt"})
            with open(folder / file, "xb") as target:
                target.write(text)
                for name in order:
                    for part in parts(name):
                        target.write(bytes_of(part))
        if len(plan) > 1:
            total = sum(meta.numel * meta.dtype.itemsize for meta in metas.values())
            weight_map = {name: file for file, names in plan.items() for name in names}
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
            (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        for name, content in files.items():
            if isinstance(content, bytes):
                (folder / name).write_bytes(content)
            else:
                shutil.copyfile(content, folder / name)


def bytes_of(part: Tensor) -> memoryview:
    """Return the bytes of a 1-D tensor on the CPU."""
    data: memoryview = as_bits(part).numpy().data
    return data
