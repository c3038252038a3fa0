"""How a history is shown: to people as git shows its own, to programs as JSON (docs/history.md describes it)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rlforget.cli import output

if TYPE_CHECKING:
    from rlforget.delta import DeltaStats
    from rlforget.history import History, Stage
    from rlforget.history.blame import Blame, BlameSummary, Count, Moment
    from rlforget.history.index import Base, Index

_UNITS = ("B", "KB", "MB", "GB", "TB")


def shown(text: str) -> str:
    """Return text from a history as a terminal may have it: without control characters."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def size(count: int) -> str:
    """Write a number of bytes with three significant digits."""
    power = 0 if count < 1000 else min(len(_UNITS) - 1, (len(str(count)) - 1) // 3)
    return f"{count / 1000**power:.3g} {_UNITS[power]}"


def changes(stage: Stage) -> str:
    """Say how much a stage changed."""
    stats = stage.stats
    parts = [f"{_number(stats, 'changed'):,} of {_number(stats, 'numel'):,} coordinates changed"]
    for key, one, several in (
        ("whole", "tensor as a whole", "tensors as a whole"),
        ("renamed", "tensor renamed", "tensors renamed"),
        ("files", "file", "files"),
    ):
        if count := _number(stats, key):
            parts.append(f"{count:,} {one if count == 1 else several}")
    return f"{', '.join(parts)}, in {size(stage.delta.size)}"


def base_json(base: Base) -> dict[str, Any]:
    """Return what there is to say of the base."""
    return {"path": base.path, "copied": base.copied, "fingerprint": base.fingerprint, "files": dict(base.files)}


def log_json(history: History, reference: str | None, count: int | None) -> dict[str, Any]:
    """Return the log."""
    index = history.index
    stages = [stage.to_dict() | {"tags": index.tags_of(stage)} for stage in history.log(reference)[:count]]
    return {"base": base_json(index.base), "head": index.head and index.head.id, "stages": stages}


def stage_json(index: Index, stage: Stage | None) -> dict[str, Any]:
    """Return one stage, or the base, and where it stands."""
    where: dict[str, Any] = {"children": [{"id": child.id, "name": child.name} for child in index.children(stage)]}
    if stage is None:
        return {"id": None, "name": "base", **base_json(index.base), **where}
    where |= {"tags": index.tags_of(stage), "head": stage == index.head}
    return stage.to_dict() | where


def show_committed(history: History, stages: Sequence[Stage], planned: Sequence[str], *, as_json: bool) -> None:
    """Write which stages were committed; where none was, those that would be."""
    names = [stage.name for stage in stages] or list(planned)
    if as_json:
        output.json_object({"stages": [stage.to_dict() for stage in stages], "names": names, "dry_run": not stages})
        return
    for stage in stages:
        output.line(f"[{stage.name} {stage.short}] {shown(stage.title)}")
        output.line(f"  {changes(stage)}")
        output.written(history.folder / stage.delta.file, dry_run=False)
    if not stages:
        output.line(f"would commit {', '.join(names)}")


def show_planned(name: str, stats: DeltaStats, *, as_json: bool) -> None:
    """Write what a stage would be called, and how much it would change."""
    if as_json:
        output.json_object({"stages": [], "names": [name], "stats": stats.to_dict(), "dry_run": True})
        return
    output.line(f"{stats.total.changed:,} of {stats.total.numel:,} coordinates changed")
    output.line(f"would commit {name}")


def show_log(history: History, reference: str | None, count: int | None) -> None:
    """Write the log, a line a stage."""
    index = history.index
    rows = [
        (one.short, one.name + _refs(index, one), _share(one), size(one.delta.size), one.time, shown(one.title))
        for one in history.log(reference)[:count]
    ]
    if not index.stages:
        output.note("no stages yet: `rlforget commit CKPT -m ...` adds one")
    if not rows:
        return
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    for row in rows:
        short, name, share, bytes_, time, title = row
        output.line(f"{short} {name:<{widths[1]}} {share:>{widths[2]}} {bytes_:>{widths[3]}}  {time}  {title}")


def show_graph(history: History, reference: str | None) -> None:
    """Write the picture of the branches."""
    from rlforget.history import Stage

    index = history.index
    for text, node in history.graph(reference):
        if isinstance(node, Stage):
            title = f" {shown(node.title)}" if node.title != node.name else ""
            output.line(f"{text} {node.short} {node.name}{_refs(index, node)}{title}")
        elif node is not None:
            output.line(f"{text} base {shown(node.path)}{'' if index.head else ' (HEAD)'}")
        else:
            output.line(text)


def show_stage(index: Index, stage: Stage | None) -> None:
    """Write all that is known of a stage, or of the base."""
    children = ", ".join(child.name for child in index.children(stage))
    if stage is None:
        base = index.base
        copied = ", a copy of its own" if base.copied else ""
        _fields({"base": shown(base.path) + copied, "weights": base.fingerprint, "children": children})
        return
    parent = None if stage.parent is None else index.by_id[stage.parent]
    _fields(
        {
            "stage": stage.name + _refs(index, stage),
            "id": stage.id,
            "parent": "base" if parent is None else f"{parent.name} {parent.short}",
            "children": children,
            "domain": shown(stage.domain or ""),
            "time": stage.time,
            "changes": changes(stage),
            "delta": stage.delta.file,
            "weights": stage.after,
        }
    )
    if stage.message:
        output.line()
        for line in stage.message.splitlines():
            output.line(f"    {shown(line)}")
    for title, values in (("metrics", stage.metrics), ("config", stage.config)):
        if values:
            output.line(f"\n{title}")
            for key, value in values.items():
                output.line(f"    {shown(key)}: {value if isinstance(value, float) else json.dumps(value)}")


def show_blame(found: Blame, top: int, *, as_json: bool) -> None:
    """Write who changed one tensor."""
    coordinates = found.top(top)
    total = found.total()
    if as_json:
        names = [{"id": stage.id, "name": stage.name} for stage in found.stages]
        counts = total.to_dict(found.stages)
        output.json_object({"tensor": found.name, "stages": names, **counts, "top": coordinates})
        return
    output.line(f"{found.name} {list(found.last.shape)}")
    _show_counts({"all": total}, found.stages)
    if coordinates:
        output.line()
        rows = [
            (", ".join(map(str, one["at"])), str(one["changes"]), str(one["returns"]), one["last"])
            for one in coordinates
        ]
        output.table(("coordinate", "changes", "back to old bits", "last changed by"), rows)


def show_summary(summary: BlameSummary, top: int, *, as_json: bool) -> None:
    """Write who changed how much of all tensors."""
    names = summary.top(top)
    if as_json:
        output.json_object({**summary.to_dict(), "top": names})
        return
    layers = {f"layer {layer}": count for layer, count in summary.layers.items() if layer is not None}
    _show_counts({**summary.kinds, **layers, "all": summary.total}, summary.stages)
    if names:
        output.line()
        _show_counts({name: summary.tensors[name] for name in names}, summary.stages)


def show_biography(tensor: str, at: str, moments: Sequence[Moment], *, as_json: bool) -> None:
    """Write a coordinate's value at each stage."""
    if as_json:
        told = [
            {
                "stage": "base" if one.stage is None else one.stage.name,
                "id": one.stage and one.stage.id,
                "value": one.value.item(),
                "changed": one.changed,
                "returned": one.returned,
            }
            for one in moments
        ]
        output.json_object({"tensor": tensor, "at": at, "moments": told})
        return
    output.line(f"{tensor} [{at}]")
    rows = []
    for one in moments:
        what = "back to old bits" if one.returned else "changed" if one.changed else ""
        rows.append(("base" if one.stage is None else one.stage.name, str(one.value.item()), what))
    output.table(("stage", "value", ""), rows)


def _refs(index: Index, stage: Stage) -> str:
    """Return what else stands for a stage: HEAD and tags."""
    names = ["HEAD"] * (stage == index.head) + [f"tag: {tag}" for tag in index.tags_of(stage)]
    return f" ({', '.join(names)})" if names else ""


def _fields(values: Mapping[str, str]) -> None:
    for key, value in values.items():
        if value:
            output.line(f"{key:<9} {value}")


def _show_counts(counts: Mapping[str, Count], stages: Sequence[Stage]) -> None:
    """Write a row for each count: the share of coordinates that the base and each stage changed last."""
    names = ["base", *(stage.name for stage in stages)]
    shown_stages = [place for place in range(len(names)) if any(count.last[place] for count in counts.values())]
    rows = [
        (
            name.encode("unicode_escape").decode(),
            f"{count.numel:,}",
            *(output.percent(count.last[place] / count.numel) if count.numel else "-" for place in shown_stages),
            f"{count.changes:,}",
            f"{count.returns:,}",
        )
        for name, count in counts.items()
    ]
    columns = ("", "coordinates", *(names[place] for place in shown_stages), "changes", "back")
    output.table(columns, rows, title="share last changed by")


def _share(stage: Stage) -> str:
    numel = _number(stage.stats, "numel")
    return output.percent(_number(stage.stats, "changed") / numel) if numel else "-"


def _number(stats: Mapping[str, Any], key: str) -> int:
    """Return a count of a stage's statistics, which anyone may have written."""
    value = stats.get(key)
    return value if type(value) is int else 0
