"""The sections of `docs/performance.md` about delta files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.delta_files.least import PARTS
from benchmarks.report.tables import environment_lines, table

MARK = {"floor": 1.05, "zstd": 1.01, "speed": 1.0, "memory": 2**30, "time": 1.5}
OURS = "rlforget"
_STEPS = {
    "read both": "*read both checkpoints from the page cache: the ceiling of a diff*",
    "diff to file": "diff to file, encoding included",
    "read before": "*read one checkpoint from the page cache: the ceiling of applying*",
    "decode": "decode, apply and check, in memory",
    "decode backward": "the same from after to before",
    "apply live": "apply to live weights, or revert, in place",
    "copy to tmpfs": "*copy a checkpoint on a filesystem in memory*",
    "apply to tmpfs": "decode and apply, to a new folder on a filesystem in memory",
    "copy to disk": "*copy a checkpoint on the disk and sync it*",
    "apply to disk": "decode and apply, to a new folder on the disk, synced",
}


_CAUSES = """\
Where a diff's time goes, in seconds of one core a GB of model at 1% changed, each part by itself: reading both sides
into memory 0.38 (mapped, it would be 0.11; read, memory stays bounded and a file cut short is an error, not a crash),
comparing 0.17, fingerprints 0.09, statistics 0.08, packing and zstd 0.12. A new folder costs at least the copy beside
it in the table of speeds. Where most coordinates changed, each costs a number to pack and to compress: 0.65 GB/s
encoding and 0.72 decoding on one core, without the rest.
"""
"""Measured on an AMD EPYC (Zen 4)."""


def sections(paths: Iterable[Path]) -> list[str]:
    """Write one section for each file of results."""
    return [_section(path) for path in paths]


def _section(path: Path) -> str:
    raw = json.loads(path.read_text(encoding="utf-8"))
    found, environment = raw["delta_files"], raw["environment"]
    parts = [
        f"## Delta files: {environment['cpu']}, {environment['threads']} threads\n",
        environment_lines(environment, path),
        "Made by `make bench-deltas`, the last part by `make bench-deltas-large`. Pairs of checkpoints are those of "
        "`benchmarks/checkpoint_pair.py`.\n",
        _bars(found),
    ]
    if "pairs" in found:
        parts += [_sizes(found["pairs"]), _speeds(found["pairs"]), _peers(found), _special(found["special"])]
    if "large" in found:
        parts.append(_large(found["large"]))
    if "cached" in found:
        parts.append(_cached(found["cached"]))
    return "\n".join(parts)


def _bars(found: dict[str, Any]) -> str:
    """What was asked, and what was reached."""
    rows = []
    for pair in found.get("pairs", []):
        changed, sizes = f"{pair['share']:.2%} changed", pair["bytes"]
        floor = sizes["delta"] / _floor(pair)
        if pair["share"] < 0.5:
            rows.append([changed, "size, of the entropy floor", _bar("≤", floor, MARK["floor"], _ratio)])
        zstd = sizes["delta"] / sizes["zstd of after"]
        rows.append([changed, "size, of the zstd of the checkpoint after", _bar("≤", zstd, MARK["zstd"], _ratio)])
        for step in ("diff to file", "decode", "decode backward", "apply to tmpfs"):
            rows.append([changed, _STEPS[step], _bar("≥", _speed(pair, step), MARK["speed"], _gigabytes_a_core)])
    for name, command in found.get("large", {}).get("commands", {}).items():
        size = f"{found['large']['model_bytes'] / 1e9:.0f} GB"
        rows.append([size, f"peak memory of `rlforget {name}`", _bar("≤", command["peak_bytes"], MARK["memory"], _mib)])
    cached = found.get("cached", {})
    for name, parts in PARTS.items() if cached else ():
        least = sum(cached["parts"][part] for part in parts)
        times = (cached["commands"][name] - cached["start"][name]) / least
        size = f"{cached['model_bytes'] / 1e9:.0f} GB"
        rows.append([size, f"work of `rlforget {name}`, of the least", _bar("≤", times, MARK["time"], _times)])
    header = ["pair", "what", "bar", "reached", ""]
    causes = f"\n{_CAUSES}" if "pairs" in found else ""
    return f"### Bars of delta files\n\n{table(header, [[*row[:2], *row[2]] for row in rows])}{causes}"


def _bar(sign: str, value: float, mark: float, show: Callable[[float], str]) -> list[str]:
    met = value <= mark if sign == "≤" else value >= mark
    return [f"{sign} {show(mark)}", show(value), "met" if met else "fell short"]


def _floor(pair: dict[str, Any]) -> float:
    return float(pair["floor"]["positions"] + pair["floor"]["steps"])


def _speed(pair: dict[str, Any], step: str) -> float:
    """GB/s of one checkpoint per thread, which has a core of its own."""
    return float(pair["model_bytes"] / pair["seconds"][step] / pair["threads"] / 1e9)


def _sizes(pairs: Sequence[dict[str, Any]]) -> str:
    rows = []
    for pair in pairs:
        sizes, changed = pair["bytes"], pair["floor"]["changed"]
        rows.append(
            [
                f"{changed / pair['floor']['coordinates']:.2%}",
                _megabytes(pair["model_bytes"]),
                _megabytes(sizes["delta"]),
                _ratio(sizes["delta"] / _floor(pair)),
                f"{sizes['delta'] / changed:.3f}",
                f"{_floor(pair) / changed:.3f}",
                _megabytes(sizes["self-contained"]),
                _megabytes(sizes["zstd of after"]),
            ]
        )
    header = [
        "changed",
        "checkpoint",
        "delta",
        "of floor",
        "bytes a change",
        "floor",
        "self-contained",
        "zstd of after",
    ]
    return f"""### Size

The floor is the entropy of the changed positions (N·H(k/N)) and of the histogram of their steps between neighbouring
numbers, as if every coordinate changed by chance and apart from all others. Sizes are of whole files.

{table(header, rows)}"""


def _speeds(pairs: Sequence[dict[str, Any]]) -> str:
    rows = [[text, *(f"{_speed(pair, step):.2f}" for pair in pairs)] for step, text in _STEPS.items()]
    header = ["", *(f"{pair['share']:.2%}" for pair in pairs)]
    return f"""### Speed

GB/s of one checkpoint **per core**, by the share of coordinates that changed; each step in turns with the bare passes
over the same files (in italics), the best of a few rounds.

{table(header, rows)}"""


def _peers(found: dict[str, Any]) -> str:
    pair = found["pairs"][0]
    base = found["peers"][OURS]
    rows = []
    for name, sizes in found["peers"].items():
        row = [name, next((one["version"] for one in sizes.values() if "version" in one), "–")]
        for size in ("pair", "tiny"):
            row.append(_of_ours(sizes[size], base[size]))
        one = sizes["pair"].get("measured")
        if one is None:
            rows.append([*row, sizes["pair"]["note"], "", "", ""])
            continue
        speeds = (f"{pair['model_bytes'] / one['seconds'][step] / 1e9:.2f}" for step in ("pack", "unpack"))
        rows.append([*row, *speeds, _mib(one["peak_bytes"]), "yes" if one["same"] else "no"])
    header = ["tool", "version", "size", "size, tiny pair", "pack", "unpack", "peak memory", "every bit back"]
    return f"""### Beside released tools

The pair with {pair["share"]:.2%} changed and a tiny one of 7.7 MB, in a process for each tool: from folders to
a file and from there to a new folder, on a filesystem in memory, first call included. Speeds are GB/s of one
checkpoint, on all threads. Memory is of the whole process, some 230 MiB of Python and torch included.

{table(header, rows)}"""


def _of_ours(one: dict[str, Any], ours: dict[str, Any]) -> str:
    if "measured" not in one:
        return "–"
    size = one["measured"]["bytes"]
    times = f" ({size / ours['measured']['bytes']:.1f}×)" if "measured" in ours else ""
    return f"{size / 1e6:.3g} MB{times}"


def _special(special: dict[str, dict[str, str]]) -> str:
    tools = [name for name, found in special.items() if found]
    rows = [[case, *(special[tool][case] for tool in tools)] for case in special[tools[0]]]
    return f"""### What each tool loses

One tensor each, through a file and back. *lost*: other bits came back, and nothing was said. *refused*: an exception.

{table(["value", *tools], rows)}"""


def _large(found: dict[str, Any]) -> str:
    rows = [
        [f"`rlforget {name}`", f"{one['seconds']:.0f}", _mib(one["peak_bytes"])]
        for name, one in found["commands"].items()
    ]
    return f"""### Memory on a large checkpoint

A pair of {_pair(found)}. Peak of the process's resident memory, by the kernel's high-water mark.

{table(["command", "seconds", "peak memory"], rows)}"""


def _cached(found: dict[str, Any]) -> str:
    rows = []
    for name, parts in PARTS.items():
        started = found["commands"][name] - found["start"][name]
        least = sum(found["parts"][part] for part in parts)
        terms = [f"{part} {found['parts'][part]:.2f}" for part in parts]
        rows.append([f"`rlforget {name}`", *(f"{seconds:.2f}" for seconds in (found["start"][name], started, least))])
        rows[-1] += [f"{started / least:.2f}", ", ".join(terms)]
    return f"""### Time on a checkpoint in the page cache

A pair of {_pair(found)}. *Start* is the same command on a pair of 8 MB, *work* what it takes here
beyond that, *least* the sum of its parts, each by itself on all threads: reading the files once from the page cache,
the operators on tensors in memory, writing as many bytes and syncing them. The best of a few rounds, in seconds.

{table(["command", "start", "work", "least", "of least", "parts"], rows)}"""


def _pair(found: dict[str, Any]) -> str:
    sizes = f"{found['model_bytes'] / 1e9:.0f} GB each, in tensors of {found['tensor_bytes'] / 1e9:.0f} GB"
    return f"{sizes}; the delta takes {_megabytes(found['delta_bytes'])}"


def _times(value: float) -> str:
    return f"{value:.2f}×"


def _ratio(value: float) -> str:
    return f"{value:.3f}"


def _gigabytes_a_core(value: float) -> str:
    return f"{value:.2f} GB/s a core"


def _megabytes(value: float) -> str:
    return f"{value / 1e6:.4g} MB"


def _mib(value: float) -> str:
    return f"{value / 2**20:.0f} MiB"
