"""The page about a history: its stages, their metrics, and whose bits the weights are."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from rlforget.errors import RlforgetError
from rlforget.report.document import document, opening, origin
from rlforget.report.history_story import BASE, Blamed, Node, Told, blamed_of, numbers, told_of
from rlforget.report.plots.stages import blame_plot, graph_plot, metrics_plot
from rlforget.report.sections import Section
from rlforget.report.tables import Cell, Table
from rlforget.report.wording import NONE, number, percent

if TYPE_CHECKING:
    from rlforget.history.index import Index


def compose_history(folder: Path, *, library: str) -> str:
    """Build the page of a history. Where its weights cannot be read, blame is left out, with the reason.

    Args:
        folder: The history.
        library: The source of plotly.js.

    Raises:
        HistoryError: The index is damaged, forged or of another version.
    """
    from rlforget.history import History

    history = History.open(folder)
    index = history.index
    told = told_of(index)
    blamed, why = None, ""
    try:
        blamed = blamed_of(history.blame_summary())
    except RlforgetError as fault:
        why = str(fault)
    story = [*told.story, *(blamed.story if blamed else [])]
    parts = [_stages(told, index), _metrics(told), _blame(blamed, why)]
    heading = "Where the weights of a model come from"
    note = "A history keeps each stage as the change to its parent; every number is counted, none sampled."
    above = opening(heading, note, story)
    commands = [f"rlforget log --graph -H {shlex.quote(str(folder))}", f"rlforget report {shlex.quote(str(folder))}"]
    below = origin("What this page shows is listed, and the page is", commands, _fingerprints(index))
    return document(f"history, HEAD {index.head.name if index.head else BASE}", above, parts, below, library=library)


def _stages(told: Told, index: Index) -> Section:
    text = (
        "Each stage is the change to the one it came from; any of them comes back bit for bit with `rlforget checkout`."
    )
    head = ["stage", "id", "parent", "domain", "committed", "changed", "norm", "bytes", "message"]
    names = {BASE: BASE} | {stage.id: stage.name for stage in index.stages}
    rows: list[list[str | Cell]] = []
    for node, stage in zip(told.nodes[1:], index.stages, strict=True):
        norm = numbers(stage.stats).get("l2")
        rows.append(
            [
                node.shown,
                stage.short,
                names[stage.parent or BASE],
                stage.domain or "",
                stage.time,
                Cell(percent(node.share, 1), (node.share,) if node.share == node.share else ()),
                Cell(NONE) if norm is None else Cell(number(norm, 3), (norm,)),
                Cell(f"{stage.delta.size:,}", (float(stage.delta.size),)),
                node.message,
            ]
        )
    return Section("stages", "The stages", text, [graph_plot(told)], [Table("The stages, in their order", head, rows)])


def _metrics(told: Told) -> Section:
    heading, plot = "What was measured", metrics_plot(told)
    if plot is None:
        remedy = "No metrics in this history; `rlforget commit CKPT -m TEXT --metric NAME=NUMBER` keeps them."
        return Section("metrics", heading, "", remedy=remedy)
    names = list(dict.fromkeys(name for node in told.line for name in node.metrics))
    rows: list[list[str | Cell]] = [
        [
            node.name,
            *(_metric(node, name) for name in names),
        ]
        for node in told.line
    ]
    text = "The metrics of the stages on the way to HEAD, as they were given when each was committed."
    return Section("metrics", heading, text, [plot], [Table("The metrics, stage by stage", ["stage", *names], rows)])


def _metric(node: Node, name: str) -> str | Cell:
    if name not in node.metrics:
        return ""
    error = f" ± {node.errors[name]:.2g}" if name in node.errors else ""
    return Cell(f"{node.metrics[name]:.4g}{error}", (node.metrics[name],))


def _blame(blamed: Blamed | None, why: str) -> Section:
    heading = "Whose bits the weights are"
    if blamed is None:
        return Section("blame", heading, "", remedy=f"Blame is left out: {why}")
    text = (
        "For each coordinate at HEAD the stage that last changed its stored bits; `rlforget blame TENSOR` names them."
    )
    rows: list[list[str | Cell]] = [
        [
            "elsewhere" if layer is None else f"layer {layer}",
            *(Cell(percent(share, 1), (share,) if share == share else ()) for share in shares),
        ]
        for layer, shares in blamed.layers.items()
    ]
    table = Table(
        "Share of each layer's coordinates by the stage that last changed them", ["layer", *blamed.stages], rows
    )
    return Section("blame", heading, text, [blame_plot(blamed)], [table])


def _fingerprints(index: Index) -> Table:
    rows: list[list[str | Cell]] = [[BASE, index.base.fingerprint, index.base.path]]
    rows += [[stage.name, stage.after, f"{stage.delta.file}, SHA-256 {stage.delta.sha256}"] for stage in index.stages]
    return Table("Fingerprints of the weights, and the files they come from", ["stage", "weights", "file"], rows)
