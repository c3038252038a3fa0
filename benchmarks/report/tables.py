"""What every section of the page is written with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def or_dash(value: Any, show: Callable[[Any], str]) -> str:
    """Write a value, or a dash where it is not known."""
    return "–" if value is None else show(value)


def environment_lines(found: dict[str, Any], source: Path) -> str:
    """Write the machine, the versions, the date and where the results are."""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items() if version)
    memory = f"{found['memory_bytes'] / 2**30:.0f} GiB"
    lines = [f"{found['cpu']}, {found['cores']} cores, {memory}, {found['system']}; {found['threads']} threads."]
    if "gpu" in found:
        memory = f"{found['gpu_memory_bytes'] / 2**30:.0f} GiB"
        cuda = f"CUDA {found['cuda']}, driver {found['driver']}"
        copy = f"a copy reads and writes {found['copy_bytes_per_second'] / 1e12:.2f} TB/s"
        lines.insert(0, f"{found['gpu']}, {memory}, capability {found['compute_capability']}, {cuda}; {copy}.")
    lines.append(f"{versions}. {found['date']}, `{source.as_posix()}`.")
    return "\n".join(lines) + "\n"
