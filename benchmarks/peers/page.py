"""The tables of docs/comparison.md, made from the newest results in turn; the text around them is written by hand."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Row = tuple[str, ...]

_TABLE = re.compile(r"<!-- table (?P<name>[a-z-]+) -->\n.*?<!-- end -->", re.DOTALL)
_SHOWN = ("rlforget", "weightscope", "deltatensors", "zipnn")  # of the tools in benchmarks.delta_files


def write_page(page: Path, results: Path) -> None:
    """Put the tables between the marks of the page; those whose results are missing stay as they are."""
    measured = Measured(results)
    page.write_text(_TABLE.sub(lambda found: measured.between(found), page.read_text("utf-8")), "utf-8")


class Measured:
    """The newest results of each kind.

    Args:
        folder: Where they lie.
    """

    def __init__(self, folder: Path) -> None:
        self._peers, self._deltas = _newest(folder, "peers-", "peers"), _newest(folder, "delta-files-", "peers")
        circuits = folder / "circuits.json"
        self._circuits: dict[str, Any] = json.loads(circuits.read_text()) if circuits.exists() else {}

    def between(self, found: re.Match[str]) -> str:
        """Return a table between its marks, or what stands there if there are no results."""
        makers: dict[str, Callable[[], list[Row]]] = {
            "special": self._special,
            "files": self._files,
            "merge": self._merge,
            "lora": self._lora,
            "trim": self._trim,
            "gram": self._gram,
            "circuits": self._eap_ig,
            "machine": self._machine,
        }
        rows = makers[found["name"]]()
        if len(rows) < 2:
            return found[0]
        return f"<!-- table {found['name']} -->\n{_markdown(rows)}\n<!-- end -->"

    def _tools(self, job: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield what was measured of the tools that did a job."""
        for name, found in self._peers.get("peers", {}).get(job, {}).get("tools", {}).items():
            if "note" not in found:
                yield name, found

    def _machine(self) -> list[Row]:
        rows: list[Row] = [("results", "machine", "day", "versions")]
        for what, found in (("jobs", self._peers), ("delta files", self._deltas)):
            if found:
                where = found["environment"]
                versions = f"torch {where['versions']['torch']}, Python {where['versions']['python']}"
                rows.append((what, f"{where['cpu']}, {where['threads']} threads", where["date"], versions))
        return rows

    def _merge(self) -> list[Row]:
        rows: list[Row] = [("tool", "seconds", "processor seconds", "× ours", "peak memory", "coordinates that differ")]
        tools = dict(self._tools("merge"))
        for name, found in tools.items():
            rows.append((name, *_costs(found, tools.get("rlforget")), f"{found['differ']:,}"))
        return rows

    def _lora(self) -> list[Row]:
        rows: list[Row] = [("tool", "seconds", "processor seconds", "× ours", "peak memory", "matrices", "error")]
        tools = dict(self._tools("lora"))
        for name, found in tools.items():
            costs = _costs(found, tools.get("rlforget"))
            rows.append((name, *costs, str(found["matrices"]), f"{found['error']:.4f}"))
        return rows

    def _trim(self) -> list[Row]:
        rows: list[Row] = [("task vector", "mergekit, s", "rlforget, s", "× ours")]
        for name, case in self._peers.get("peers", {}).get("trim", {}).get("cases", {}).items():
            theirs, ours = (case["seconds"][tool] for tool in ("mergekit", "rlforget"))
            label = f"{case['elements'] / 1e6:.0f} million entries, {name}"
            rows.append((label, f"{theirs:.2f}", f"{ours:.2f}", f"{theirs / ours:.1f}"))
        return rows

    def _gram(self) -> list[Row]:
        head = ("parameters", "samples × tokens", "TorchJD, s", "rlforget, s", "× ours")
        rows: list[Row] = [(*head, "TorchJD, MB", "rlforget, MB", "difference")]
        for shape in self._peers.get("peers", {}).get("gram", {}).get("shapes", {}).values():
            theirs, ours = (shape["seconds"][tool] for tool in ("torchjd", "rlforget"))
            sizes = (f"{shape['bytes'][tool] / 1e6:.0f}" for tool in ("torchjd", "rlforget"))
            times = (f"{theirs:.2f}", f"{ours:.2f}", f"{theirs / ours:.2f}")
            what = (f"{shape['parameters']:,}", f"{shape['samples']} × {shape['tokens']}")
            rows.append((*what, *times, *sizes, f"{shape['difference']:.0e}"))
        return rows

    def _files(self) -> list[Row]:
        rows: list[Row] = [("tool", "version", "bytes a change", "write, s", "read and apply, s", "peak memory")]
        files = self._deltas.get("delta_files", {})
        changed = files["pairs"][0]["floor"]["changed"] if files.get("pairs") else 0
        for name in _SHOWN:
            found = files.get("peers", {}).get(name, {}).get("pair", {})
            if "measured" in found:
                one = found["measured"]
                times = (f"{one['seconds'][step]:.1f}" for step in ("pack", "unpack"))
                size = f"{one['bytes'] / changed:.2f}"
                rows.append((name, found["version"], size, *times, f"{one['peak_bytes'] / 1e9:.1f} GB"))
            elif found:
                rows.append((name, "", found["note"], "", "", ""))
        return rows

    def _special(self) -> list[Row]:
        special = {name: self._deltas.get("delta_files", {}).get("special", {}).get(name, {}) for name in _SHOWN}
        special["git-theta"] = self._peers.get("peers", {}).get("git-theta", {}).get("special", {})
        rows: list[Row] = [("value", *special)]
        values = dict.fromkeys(value for fates in special.values() for value in fates)
        return rows + [(value, *(fates.get(value, "–") for fates in special.values())) for value in values]

    def _eap_ig(self) -> list[Row]:
        rows: list[Row] = [("model", "edges, as published", "nodes", "lean nodes", "memory of edges", "correlation")]
        for one in self._circuits.get("eap_ig", []):
            ratios = {what: {n: one[what][n] / one[what]["ours"] for n in one[what]} for what in ("seconds", "bytes")}
            times = (f"{ratios['seconds'][name]:.1f}" for name in ("edges", "nodes", "lean nodes"))
            rows.append((one["shape"], *times, f"{ratios['bytes']['edges']:.1f}", f"{one['correlation']:.4f}"))
        return rows


def _costs(found: dict[str, Any], ours: dict[str, Any] | None) -> Row:
    times = f"{found['cpu_seconds'] / ours['cpu_seconds']:.1f}" if ours else "–"
    return f"{found['seconds']:.1f}", f"{found['cpu_seconds']:.1f}", times, f"{found['peak_bytes'] / 1e9:.2f} GB"


def _newest(folder: Path, prefix: str, key: str) -> dict[str, Any]:
    """Return the newest results that hold `key`, by the date in their name."""
    for path in sorted(folder.glob(f"{prefix}*.json"), key=lambda path: path.stem[-10:], reverse=True):
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if key in found or any(key in value for value in found.values() if isinstance(value, dict)):
            return found
    return {}


def _markdown(rows: list[Row]) -> str:
    head, *body = rows
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *body))
