"""What the suite for a GPU adds to the page: the steps on a whole model, and what was left out."""

from __future__ import annotations

from benchmarks.report.bars import as_share, as_times
from benchmarks.report.results import Record, Results
from benchmarks.report.tables import or_dash, table

NOT_RUN = """## A GPU

The suite for a GPU was **not run yet**: no results of it are in `benchmarks/results`. `make bench-gpu`, on a machine
with one, makes them in less than nine minutes, and `make performance` then puts them here: a model in the shapes of
Qwen2.5 3B, made on the device, of which 1.14% of the coordinates change; diff and statistics (the bar of both together
is 8 ms), fingerprint, scores, selection, rollbacks, undo, Fisher and conflict subspace, beside plain torch and
`torch.compile`, with the peak of memory; then every operator, as above for a CPU.
"""


def whole_model(results: Results) -> str:
    """Write the table of the steps on a whole model."""
    rows = [
        [
            record.case,
            _milliseconds(record.seconds["ours"]),
            *(["–", "–"] if not record.raw["moved"] else [f"{record.speed:.0f}", as_share(record.share)]),
            *(or_dash(record.times(peer), as_times) for peer in ("torch", "torch.compile")),
            or_dash(record.raw["peak_bytes"].get("ours"), _gibibytes),
            or_dash(record.raw["peak_bytes"].get("torch"), _gibibytes),
            or_dash(record.extra(), _gibibytes),
        ]
        for record in results.model
    ]
    header = ["step", "ms", "GB/s", "of ceiling", "× torch", "× torch.compile", "peak", "torch's peak", "extra"]
    return f"""### A model of 3 billion parameters

In the shapes of Qwen2.5 3B, made on the device; 1.14% of the coordinates change, as after an RL fine-tune. Steps named
`rf.` are whole calls, checks and copies to the host's memory included; the others are operators on all tensors at once.
Peaks are of all that torch held on the device; extra is ours beyond inputs and outputs.

{table(header, rows)}{_notes(results.model)}"""


def course(results: Results) -> str:
    """Tell how long each section took, and name what is missing."""
    rows = [
        [name, f"{section['seconds']:.0f}", str(len(section["left_out"])), str(len(section["failed"]))]
        for name, section in results.sections.items()
    ]
    missing = [
        f"- {says}: {case['operator']}, {case['case']}: {case['why']}."
        for section in results.sections.values()
        for kind, says in (("left_out", "left out"), ("failed", "failed"))
        for case in section[kind]
    ]
    names = "\n" + "\n".join(missing) + "\n" if missing else ""
    return f"### The run\n\n{table(['section', 'seconds', 'cases left out', 'cases failed'], rows)}{names}"


def _notes(records: list[Record]) -> str:
    notes = [f"- {record.case}: {peer}: {note}." for record in records for peer, note in record.raw["notes"].items()]
    return "\n" + "\n".join(notes) + "\n" if notes else ""


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.0f}" if seconds > 0.1 else f"{1e3 * seconds:.2f}"


def _gibibytes(value: float) -> str:
    return f"{value / 2**30:.2f} GiB"
