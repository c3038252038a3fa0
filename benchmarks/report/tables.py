"""What every section of the page is written with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def environment_lines(found: dict[str, Any], source: Path) -> str:
    """Write the machine, the versions, the date and where the results are."""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items() if version)
    memory = f"{found['memory_bytes'] / 2**30:.0f} GiB"
    lines = [f"{found['cpu']}, {found['cores']} cores, {memory}, {found['system']}; {found['threads']} threads."]
    if "gpu" in found:
        memory = f"{found['gpu_memory_bytes'] / 2**30:.0f} GiB"
        lines.insert(0, f"{found['gpu']}, {memory}, capability {found['compute_capability']}, CUDA {found['cuda']}.")
    lines.append(f"{versions}. {found['date']}, `{source.as_posix()}`.")
    return "\n".join(lines) + "\n"
