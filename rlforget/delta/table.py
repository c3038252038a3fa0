"""The statistics of a delta as a table for people, at most 100 columns wide."""

from __future__ import annotations

from collections.abc import Iterator

from rlforget.delta.stats import Change, DeltaStats

_NAME_WIDTH = 23
_ROW = "{:<23} {:<5} {:>7} {:>7} {:>8} {:>8} {:>8} {:>8} {:>8} {:>7}"
_HEAD = _ROW.format("", "dtype", "coords", "changed", "same", "abs 1e-5", "rel 1e-3", "L2", "max", "±1 ulp")
_SHORT = {
    "bfloat16": "bf16",
    "float16": "fp16",
    "float32": "fp32",
    "float64": "fp64",
    "float8_e4m3fn": "e4m3",
    "float8_e5m2": "e5m2",
}


def render(stats: DeltaStats, *, layers: bool, tensors: bool) -> str:
    """Return the table; see `DeltaStats.table`."""
    return "\n".join([_HEAD, *_body(stats, layers=layers, tensors=tensors), *_others(stats), _legend(stats.total)])


def _others(stats: DeltaStats) -> Iterator[str]:
    """Say what changed that has no coordinates to count."""
    for what, names in (("tensor", stats.whole), ("file", stats.files)):
        for name, fate in names.items():
            yield f"{fate} {what}: {name.encode('unicode_escape').decode()}"
    for before, after in stats.renamed.items():
        yield "renamed tensor: " + f"{before} -> {after}".encode("unicode_escape").decode()


def _body(stats: DeltaStats, *, layers: bool, tensors: bool) -> Iterator[str]:
    yield from (_row(kind, change) for kind, change in stats.kinds.items())
    if layers:
        numbered = {layer: change for layer, change in stats.layers.items() if layer is not None}
        yield from (_row(f"layer {layer}", change) for layer, change in numbered.items())
    if tensors:
        yield from (_row(name, change) for name, change in stats.tensors.items())
    yield _row("total", stats.total)


def _row(name: str, change: Change) -> str:
    name = name.encode("unicode_escape").decode()
    if len(name) > _NAME_WIDTH:
        name = "..." + name[3 - _NAME_WIDTH :]
    dtype = "mixed" if len(change.dtypes) > 1 else "".join(_SHORT.get(dtype, dtype) for dtype in change.dtypes)
    return _ROW.format(
        name,
        dtype,
        _count(change.numel),
        _count(change.changed),
        _share(change.sparsity),
        _share(change.sparsity_absolute),
        _share(change.sparsity_relative),
        f"{change.l2:.2e}",
        f"{change.largest:.2e}",
        _share(change.unit_step_share),
    )


def _legend(total: Change) -> str:
    lines = [
        f"{total.changed:,} of {total.numel:,} coordinates changed.",
        "same: equal bits; abs, rel: |after - before| within 1e-5, or within 1e-3 of the larger of the two;",
        "L2, max: of after - before; ±1 ulp: share of the changed that moved to the next representable value.",
    ]
    if total.non_finite:
        lines.append(f"{total.non_finite:,} changed coordinates are NaN or infinite; the norms leave them out.")
    return "\n".join(lines)


def _count(count: int) -> str:
    if count < 10_000:
        return str(count)
    power = min(4, (len(str(count)) - 1) // 3)
    return f"{count / 1000**power:.1f}{' KMGT'[power]}"


def _share(share: float) -> str:
    """Return a percentage that says 0 or 100 only where that is exact."""
    text = f"{100 * share:.2f}%"
    if text == "100.00%" and share < 1:
        return ">99.99%"
    return "<0.01%" if text == "0.00%" and share > 0 else text
