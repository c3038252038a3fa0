"""How the line of a delta file is cut: into the runs that frames cover, and among ranks that write one file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from rlforget.delta.file.table import MOST_LINE, Entry, FileEntry, Form, Span, Table, WholeEntry
from rlforget.delta.scan import PIECE
from rlforget.delta.sides import WholeMetas
from rlforget.weights import Layout
from rlforget.weights.split import parts, stretch

WHOLE_LINE = range(MOST_LINE)
"""All places there may be: what a lone process writes."""


def share(layout: Layout, whole: WholeMetas, files: Mapping[str, FileEntry], *, self_contained: bool) -> range:
    """Return the places on the line that this rank writes, from the beginning of a run to the end of one.

    Args:
        layout: The tensors that keep shape and dtype.
        whole: Those that travel whole.
        files: The files that are no weights.
        self_contained: Whether the bits from before travel.
    """
    if parts() == 1:
        return WHOLE_LINE
    tensors = {name: Entry(name, layout.meta(name), 0, (0, 0), (0, 0)) for name in layout.names()}
    others = {name: WholeEntry(name, *sides, None, None) for name, sides in whole.items()}
    runs = list(_runs(Table(tensors, others, files, {}, {}, {}, self_contained).spans))
    own = runs[stretch([run.size * run.form[0] for run in runs])]
    return range(own[0].start, own[-1].start + own[-1].size) if own else range(0)


def joins(form: Form, size: int, run_form: Form, run_size: int) -> bool:
    """Whether `size` places of one thing share a frame with the run right before them."""
    return form == run_form and run_size + size <= PIECE


@dataclass
class _Run:
    start: int
    size: int
    form: Form


def _runs(spans: Iterable[Span]) -> Iterator[_Run]:
    """Yield the runs of a line: every thing on it comes in ranges of `PIECE`."""
    run = None
    for span in spans:
        for start in range(span.start, span.stop, PIECE):
            size = min(PIECE, span.stop - start)
            if run is not None and joins(span.form, size, run.form, run.size):
                run.size += size
                continue
            if run is not None:
                yield run
            run = _Run(start, size, span.form)
    if run is not None:
        yield run
