"""Why a bar was not reached, in the figures of the run that did not reach it."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.report.results import Record, Results

Cause = Callable[[Record, Results], str]


def of_products(peer: str, otherwise: str, besides: Cause) -> Cause:
    """What multiplying takes by itself, beside all that a peer does.

    Args:
        peer: Which.
        otherwise: What is said of a run that did not measure what the machine can multiply.
        besides: What is said besides of one that did.
    """

    def cause(record: Record, results: Results) -> str:
        ours, theirs, peak = record.seconds["ours"], record.seconds[peer], results.float_speed
        if not peak:
            return otherwise
        alone = record.flops / peak
        text = (
            f"at this machine's float32 peak of {peak / 1e9:.0f} GFLOP/s the products alone take {alone / theirs:.2f} "
            f"of {peer}'s time, so at most {theirs / alone:.1f}×"
        )
        if results.environment.get("bfloat16_products"):
            text += ", but for the instructions for bfloat16, which multiply faster"
        text += f"; ours does {alone / ours:.2f} of that peak"
        return f"{text}; {besides(record, results)}"

    return cause


def of_one_product(record: Record, results: Results) -> str:
    """What torch needs for the first of the products of `project`, with nothing to compute before it."""
    alone = record.seconds["torch's product alone"] / record.seconds["torch"]
    return (
        f"torch's product with V alone, of a float32 matrix that lies ready, takes {alone:.2f} of all that torch does"
    )


def of_rounding(peer: str) -> Cause:
    """What a peer that rounds its gradients to bfloat16 gains by it."""

    def cause(record: Record, results: Results) -> str:
        reached = record.flops / record.seconds[peer] / results.float_speed
        return f"{peer} rounds the gradients to bfloat16, where ours keeps float32, and does {reached:.2f} of it"

    return cause


def of_compiled_pass(what: str) -> Cause:
    """What torch's compiler reaches with a pass over the same arrays."""

    def cause(record: Record, results: Results) -> str:
        reached = record.seconds["ceiling"] / record.seconds["torch.compile"]
        return f"{what} by torch.compile reaches {reached:.2f} of the ceiling"

    return cause


def of_listing(record: Record, results: Results) -> str:
    """What listing the changes adds to a read of both inputs."""
    ours, read = (1e3 * record.seconds[name] for name in ("ours", "ceiling"))
    listed = (record.raw["moved"] - record.raw["inputs"]) / 1e6
    return (
        f"a read takes {read:.1f} of {ours:.1f} ms; in the rest what changed is found out and listed, {listed:.1f} MB"
    )


def of_written_lines(record: Record, results: Results) -> str:
    """That memory is written by whole lines."""
    if "ceiling_moved" not in record.raw:
        return "counted apart, nearly every block of two lines of memory holds a change, and is written whole"
    inputs = record.raw["inputs"]
    lines = 2 * (record.ceiling_moved - inputs) / inputs
    return (
        f"{lines:.0%} of the lines of memory hold a change, and are written whole besides what is read; of a copy or a "
        f"pass in place of as many bytes it is {record.share:.2f}"
    )


def of_scattered_lines(peer: str, otherwise: str) -> Cause:
    """How many times as fast as a peer a bare pass over the same lines of memory is.

    Args:
        peer: Which.
        otherwise: What is said of a run without such a pass.
    """

    def cause(record: Record, results: Results) -> str:
        if "ceiling_moved" not in record.raw:
            return otherwise
        least, theirs = record.seconds["ceiling"], record.seconds[peer]
        return (
            f"lines of memory that hold a change are read and written whole, {record.ceiling_moved / 1e6:.0f} MB in "
            f"all; a copy or a pass in place of as many bytes takes {least / theirs:.2f} of {peer}'s time, so at most "
            f"{theirs / least:.1f}×; ours reaches {record.share:.2f} of its speed"
        )

    return cause


def of_fixed_size(share: float) -> Cause:
    """That temporaries do not grow with the inputs, and from which size on they are as small as asked."""

    def cause(record: Record, results: Results) -> str:
        extra = record.extra() or 0
        return (
            f"histograms, whose size depends on the threads alone: {extra / 2**20:.1f} MiB, as small as asked beside "
            f"inputs of {extra / share / 1e6:.0f} MB and more"
        )

    return cause


def of_rest(record: Record, results: Results) -> str:
    """What a whole diff does besides."""
    torch, rest = (1e3 * record.raw["parts"][part] for part in ("torch", "rest"))
    return (
        f"of {1e3 * record.seconds['diff']:.0f} ms, {torch:.0f} ms are torch's own operators, which make views, and "
        f"{rest:.0f} ms Python, opening files and mapping them"
    )
