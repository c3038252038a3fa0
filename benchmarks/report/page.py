"""The text of `docs/performance.md`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.report.bars import BARS, as_mebibytes, as_share, as_times
from benchmarks.report.delta_files import sections as delta_files_sections
from benchmarks.report.results import Record, Results
from benchmarks.report.suite import NOT_RUN, course, whole_model
from benchmarks.report.tables import environment_lines, or_dash, table

PICTURE = "images/performance.svg"
PEERS = ("torch", "torch.compile")  # columns of every table; other peers follow where an operator has them

_HEAD = f"""# Performance

Every operator beside the same task done by others, in one run on one machine. This page is made from the results in
`benchmarks/results` by `make performance`; the results by `make bench`, or `make bench-gpu` on a machine with a GPU.
What is measured, and how, is in [benchmarks/README.md](../benchmarks/README.md).

- **GB/s** counts the fewest bytes that the task moves, over the best time.
- **of ceiling** is the time of a bare pass over memory, in turns with ours, as a share of ours: on a CPU a read of the
  inputs for a task that writes little, else the faster of a copy and a pass in place; on a GPU a copy.
- **GFLOP/s**, of operators that multiply, counts the operations of the dense products; **of peak** is that as a share
  of the most float32 operations that the machine did in the same run. Products of bfloat16 may pass it.
- **× torch** is how many times as long plain torch takes; **× torch.compile** the same code compiled.
- **extra** is the peak of memory beyond inputs and outputs.
- **error** is what float32 sums are off from float64: of `project` as a share of the core's norm, of `gradient_gram_`
  the largest of an entry as a share of the two gradients' norms.

Ratios travel between machines; seconds and GB/s do not.

![Speed of every operator beside the machine's ceilings]({PICTURE})

Of each machine, first operators that move bytes. Then those that multiply, by the operations a byte that they do,
under what memory and the float32 peak allow. Instructions for bfloat16, a cache, or a change of few coordinates, of
which not all products are computed, may lift a point above these lines.
"""


def page(every: Sequence[Results], delta_files: Sequence[Path] = ()) -> str:
    """Write the page about results, one file a device, and of those about delta files."""
    parts = [_HEAD]
    for results in every:
        parts += [f"## {results.name}\n", _environment(results), _bars(results)]
        if results.sections:
            parts.append(course(results))
        if results.model:
            parts.append(whole_model(results))
        if results.records:
            parts.append(_operators(results))
        if results.diff:
            parts.append(_diff(results.diff))
        if results.calls:
            parts.append(_calls(results.calls))
    if not any(results.device == "cuda" for results in every):
        parts.append(NOT_RUN)
    return "\n".join([*parts, *delta_files_sections(delta_files)])


def _bars(results: Results) -> str:
    """The bars of a device, and the causes where one was not reached."""
    rows, causes = [], []
    for bar in BARS:
        if results.device not in bar.marks:
            continue
        worst, name = bar.worst(results), f"`{bar.operator}`" if bar.operator else "every operator"
        value, verdict = None, "not measured"
        if worst is not None:
            value, record = worst
            verdict = "met" if bar.met(value, results.device) else "fell short"
            if verdict == "fell short":
                cause = bar.cause(record, results)
                causes.append(f"- {', '.join(filter(None, [name, bar.case, bar.text]))}: {cause}.")
        rows.append([name, bar.case, bar.text, bar.asked(results.device), or_dash(value, bar.show), verdict])
    text = f"### Bars\n\n{table(['operator', 'case', 'what', 'bar', 'reached', ''], rows)}"
    return text + ("\n" + "\n".join(causes) + "\n" if causes else "")


def _environment(results: Results) -> str:
    size = f"Tensors of {results.environment['elements'] / 1e6:.1f} million coordinates"
    peak = f"Float32 peak: {results.float_speed / 1e9:.0f} GFLOP/s. " if results.float_speed else ""
    lines = environment_lines(results.environment, results.source)
    return f"{lines}{peak}{size}, where a case does not say otherwise.\n"


def _operators(results: Results) -> str:
    found = results.operators().items()
    return "\n".join(f"### `{name}`\n\n{_operator(records, results.float_speed)}" for name, records in found)


def _operator(records: list[Record], float_speed: float) -> str:
    """A table of an operator's cases, with columns for what some of them have."""
    others = dict.fromkeys(name for record in records for name in record.peers if name not in PEERS)
    peers = [*PEERS, *others]
    columns: dict[str, Callable[[Record], str]] = {
        "case": lambda record: record.case,
        "GB/s": lambda record: f"{record.speed:.1f}",
        "of ceiling": lambda record: as_share(record.share),
    }
    if any(record.flops for record in records):
        columns["GFLOP/s"] = lambda record: f"{record.float_rate:.0f}"
        if float_speed:
            columns["of peak"] = lambda record: as_share(1e9 * record.float_rate / float_speed)
    for peer in peers:
        columns[f"× {peer}"] = partial(_times, peer)
    columns["extra"] = lambda record: or_dash(record.extra(), lambda extra: as_mebibytes(extra / 2**20))
    if any(record.error is not None for record in records):
        columns["error"] = lambda record: or_dash(record.error, lambda error: f"{error:.0e}")
    rows = [[show(record) for show in columns.values()] for record in records]
    notes = dict.fromkeys(
        f"- {peer}: {note}." for record in records for peer, note in sorted(record.raw["notes"].items())
    )
    return table(list(columns), rows) + ("\n" + "\n".join(notes) + "\n" if notes else "")


def _times(peer: str, record: Record) -> str:
    return or_dash(record.times(peer), as_times)


def _diff(found: dict[str, Any]) -> str:
    seconds, parts = found["seconds"], found["parts"]
    whole, apart = seconds["diff"], "watched diff" in seconds
    names = {"torch": "torch's own operators: views", "rest": "all else: Python, opening files"}
    rows = [
        [names.get(part, f"`{part}`"), f"{1e3 * taken:.0f}", f"{taken / whole:.0%}"] for part, taken in parts.items()
    ]
    rows.append(["the whole `rf.diff`", f"{1e3 * whole:.0f}", "100%"])
    if apart:
        rows.append(
            [
                "*the same while operators are timed*",
                f"{1e3 * seconds['watched diff']:.0f}",
                _of(seconds, "watched diff"),
            ]
        )
    rows += [
        [
            "*a bare read of fresh maps of the same files*",
            f"{1e3 * seconds['fresh read']:.0f}",
            _of(seconds, "fresh read"),
        ],
        ["*the same again, its pages mapped*", f"{1e3 * seconds['read']:.0f}", _of(seconds, "read")],
    ]
    size, gigabytes = found["size"].upper(), found["bytes"] / 1e9
    changed = found["changed"] / found["coordinates"]
    how = "timed in rounds of their own" if apart else "timed in the same rounds, which is part of all else"
    outside = parts["torch"] + parts["rest"]
    return f"""### One whole `rf.diff`

Two checkpoints in the shapes of Qwen2.5 {size}, {found["tensors"]} tensors, {gigabytes:.2f} GB in both,
{changed:.2%} of the coordinates changed, from files in the page cache to a delta in memory:
{gigabytes / whole:.1f} GB/s. Operators are {how}.
{outside / whole:.0%} of the time is outside the operators' passes over the tensors.

{table(["part", "ms", "share"], rows)}"""


def _of(seconds: dict[str, float], name: str) -> str:
    return f"{seconds[name] / seconds['diff']:.0%}"


def _calls(calls: dict[str, float]) -> str:
    rows = [
        ["Python and the imports of torch, numba and rlforget alone", calls["start"]],
        ["first call ever: the operators are compiled, and kept on disk", calls["first"]],
        ["second call, a new process", calls["second"]],
    ]
    return f"""### First and second call

`rlforget diff` of two small checkpoints, in processes of their own. The compiled code is kept beside the package, or in
the user's cache folder where the package cannot be written (`NUMBA_CACHE_DIR` and `TRITON_CACHE_DIR` say otherwise).

{table(["", "seconds"], [[name, f"{taken:.1f}"] for name, taken in rows])}"""
