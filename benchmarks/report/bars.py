"""What each operator is meant to reach, as ratios within one run, and whether it did."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from benchmarks.cases.rollback import READ
from benchmarks.portable import SUFFIX
from benchmarks.report import causes
from benchmarks.report.causes import Cause
from benchmarks.report.results import DIFF, Record, Results
from rlforget_kernels import OPERATORS

MEBIBYTE = 1 << 20
Quantity = Callable[[Record], float | None]


@dataclass(frozen=True)
class Bar:
    """One mark to reach.

    Attributes:
        operator: Whose; empty for every operator of the kernels' package; "model" for a step on a whole model;
            "rf.diff" for the whole call.
        case: The label of its case; empty for all of them, of which the worst counts.
        text: What is compared, for people.
        quantity: Reads it from a record; None where it was not measured.
        marks: What to reach, by device type.
        show: Writes a value, reached or asked.
        at_most: Whether less is better.
        causes: By device type, what tells from the results why the mark is not reached.
    """

    operator: str
    case: str
    text: str
    quantity: Quantity
    marks: Mapping[str, float]
    show: Callable[[float], str]
    at_most: bool = False
    causes: Mapping[str, Cause] = field(default_factory=dict)

    def worst(self, results: Results) -> tuple[float, Record] | None:
        """Return the worst value among the cases and its record, None where none was measured."""
        found = [
            (value, record)
            for record in [*results.records, *results.model, *results.diffs]
            if record.operator in ([self.operator] if self.operator else OPERATORS) and self.case in (record.case, "")
            if (value := self.quantity(record)) is not None
        ]
        return (max if self.at_most else min)(found, key=lambda one: one[0], default=None)

    def cause(self, record: Record, results: Results) -> str:
        """Tell why the mark was not reached."""
        cause = self.causes.get(results.device)
        return cause(record, results) if cause else "the cause is not known yet"

    def met(self, value: float, device: str) -> bool:
        """Whether a value is good enough."""
        mark = self.marks[device]
        return value <= mark if self.at_most else value >= mark

    def asked(self, device: str) -> str:
        """Write the mark."""
        return f"{'≤' if self.at_most else '≥'} {self.show(self.marks[device])}"


def share(record: Record) -> float:
    """Of the ceiling."""
    return record.share


def share_of(peer: str) -> Quantity:
    """Of what a peer reaches that does less."""

    def quantity(record: Record) -> float | None:
        if peer not in record.seconds and peer == READ and record.raw["ceiling"] == "read":
            return record.share  # of a run in which that was the ceiling
        return record.times(peer)

    return quantity


def times(peer: str) -> Quantity:
    """How many times as fast as a peer."""
    return lambda record: record.times(peer)


def memory_beside(peer: str) -> Quantity:
    """Peak extra memory as a share of a peer's."""

    def quantity(record: Record) -> float | None:
        ours, theirs = record.extra(), record.extra(peer)
        return ours / theirs if ours is not None and theirs else None

    return quantity


def extra_mebibytes(record: Record) -> float | None:
    """Peak extra memory."""
    extra = record.extra()
    return None if extra is None else extra / MEBIBYTE


def share_of_inputs(record: Record) -> float | None:
    """Peak extra memory as a share of the inputs."""
    extra, inputs = record.extra(), record.raw["inputs"]
    return extra / inputs if extra is not None and inputs else None


def milliseconds(record: Record) -> float:
    """How long ours takes."""
    return 1e3 * record.seconds["ours"]


def outside_passes(record: Record) -> float | None:
    """Of a whole diff, the share of the time in which no operator passes over tensors."""
    if "watched diff" not in record.seconds:
        return None  # of a run that timed operators in the very diff whose time they were taken off
    parts = record.raw["parts"]
    return float((parts["torch"] + parts["rest"]) / record.seconds["diff"])


def as_share(value: float) -> str:
    """0.5 as 0.50."""
    return f"{value:.2f}"


def as_times(value: float) -> str:
    """5 as 5.0×."""
    return f"{value:.1f}×"


def as_percent(value: float) -> str:
    """0.01 as 1.0%."""
    return f"{100 * value:.1f}%"


def as_mebibytes(value: float) -> str:
    """64 as 64 MiB."""
    return f"{value:.0f} MiB"


def as_milliseconds(value: float) -> str:
    """8 as 8.0 ms."""
    return f"{value:.1f} ms"


_CEILING = "share of the ceiling"
_VMAP = "torch.func.vmap"
_GRAM = "bfloat16, q_proj 2048 → 2048"
_LISTING = {"cpu": causes.of_listing}
_FINGERPRINT = {"cpu": causes.of_compiled_pass("a plain sum, without the arithmetic of a fingerprint,")}
_FISHER = {"cpu": causes.of_compiled_pass("the same")}
_ROLLBACK = {"cpu": causes.of_written_lines}
_PATCH = {
    "cpu": causes.of_scattered_lines(
        "torch", "counted apart, four of five lines of memory hold a change, and are read and written whole"
    )
}
_PROJECT = {
    "cpu": causes.of_products(
        "torch",
        "timed apart, products on a matrix unit take a quarter of ours, and waiting for memory a third",
        causes.of_one_product,
    )
}
_PRODUCTS = {
    "cpu": causes.of_products(
        _VMAP,
        "ours keeps float32, which is six products of a matrix unit at half of its speed; the peer rounds gradients "
        "to bfloat16, which is one",
        causes.of_rounding(_VMAP),
    )
}
_HISTOGRAMS = {"cpu": causes.of_fixed_size(0.01)}
_DIFF = {"cpu": causes.of_rest}

BARS = [
    *(
        Bar("sparse_delta", f"bfloat16, {changed} changed", _CEILING, share, marks, as_share, causes=_LISTING)
        for changed, marks in (("0.2%", {"cpu": 0.80, "cuda": 0.85}), ("5%", {"cpu": 0.45, "cuda": 0.85}))
    ),
    Bar("sparse_delta", "bfloat16, 0.2% changed", "against torch", times("torch"), {"cpu": 5, "cuda": 10}, as_times),
    Bar("sparse_delta", "bfloat16, 5% changed", "against torch", times("torch"), {"cpu": 5, "cuda": 10}, as_times),
    *(
        Bar(
            "sparse_delta",
            f"bfloat16, {changed} changed{SUFFIX}",
            _CEILING,
            share,
            {"cpu": mark},
            as_share,
            causes=_LISTING,
        )
        for changed, mark in (("0.2%", 0.70), ("5%", 0.22))
    ),
    Bar("delta_stats", "bfloat16, 1% changed", _CEILING, share, {"cpu": 0.30, "cuda": 0.90}, as_share),
    Bar("fingerprint", "bfloat16", _CEILING, share, {"cpu": 0.50, "cuda": 0.90}, as_share, causes=_FINGERPRINT),
    Bar("fisher_accumulate", "float32, dense", _CEILING, share, {"cpu": 0.80, "cuda": 0.90}, as_share, causes=_FISHER),
    Bar("fisher_accumulate", "bfloat16, dense", _CEILING, share, {"cpu": 0.80, "cuda": 0.90}, as_share, causes=_FISHER),
    Bar("conflict_selection", "two_fisher, 2%", "against torch", times("torch"), {"cpu": 5, "cuda": 10}, as_times),
    Bar(
        "conflict_selection",
        "two_fisher, 2%",
        "temporaries, of the inputs",
        share_of_inputs,
        {"cpu": 0.01, "cuda": 0.01},
        as_percent,
        at_most=True,
        causes=_HISTOGRAMS,
    ),
    *(
        bar
        for case in ("bfloat16, half way, 5% changed", "bfloat16, whole, 5% changed")
        for bar in (
            Bar("rollback", case, f"share of {READ}", share_of(READ), {"cpu": 0.70}, as_share, causes=_ROLLBACK),
            Bar("rollback", case, _CEILING, share, {"cuda": 0.90}, as_share),
        )
    ),
    Bar(
        "patch", "bfloat16, 5% changed", "against torch", times("torch"), {"cpu": 3, "cuda": 3}, as_times, causes=_PATCH
    ),
    Bar(
        "project",
        "bfloat16, 24 layers, rank 64",
        "against torch",
        times("torch"),
        {"cpu": 3},
        as_times,
        causes=_PROJECT,
    ),
    Bar("project", "bfloat16, 24 layers, rank 64", _CEILING, share, {"cuda": 0.80}, as_share),
    Bar("gradient_gram", _GRAM, f"against {_VMAP}", times(_VMAP), {"cpu": 2, "cuda": 3}, as_times, causes=_PRODUCTS),
    Bar(
        "gradient_gram",
        _GRAM,
        f"memory, of {_VMAP}'s",
        memory_beside(_VMAP),
        {"cpu": 0.1, "cuda": 0.1},
        as_share,
        at_most=True,
    ),
    Bar("model", "diff and stats", "time", milliseconds, {"cuda": 8}, as_milliseconds, at_most=True),
    Bar("mergekit_trim", "density 0.2", "against mergekit", times("mergekit"), {"cpu": 10}, as_times),
    Bar(
        DIFF,
        "0.5b",
        "outside the passes over tensors",
        outside_passes,
        {"cpu": 0.20},
        as_share,
        at_most=True,
        causes=_DIFF,
    ),
    Bar("", "", "peak memory beyond outputs", extra_mebibytes, {"cpu": 64, "cuda": 64}, as_mebibytes, at_most=True),
]
"""Every bar, in the order of the page."""
