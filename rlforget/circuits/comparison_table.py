"""A comparison of circuits as tables for people, at most 100 columns wide."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rlforget.circuits.controls import Band, PValue
from rlforget.circuits.difference import Difference
from rlforget.circuits.kept import Kept

if TYPE_CHECKING:
    from rlforget.circuits.comparison import Comparison

_LISTED = 20
_NAMES = {
    "retention": "retention",
    "iou": "IoU",
    "correlation": "correlation",
    "rank_correlation": "rank corr.",
    "mask_shift": "mask shift",
}
_KEPT = "{:<12} {:<11} {:>6} {:>14} {:>7} {:>6} {:>14} {:>7} {:>6} {:>6}"
_GAP = "{:<12} {:<11} {:>7} {:>15} {:>6} {:>7}"
_VULNERABLE = "{:<12} {:>6} {:>7} {:>8} {:>8} {:>8} {:>6}"
_WIDTH = 12
_TIES = (
    "p of a gap breaks the measure's ties by the correlation; at most counts them in full: where it is large, a small "
    "p is no evidence of the measure itself."
)


def render(comparison: Comparison) -> str:
    """Return the tables; see `Comparison.table`."""
    return "\n".join(_lines(comparison))


def _lines(comparison: Comparison) -> Iterator[str]:
    sizes = ", ".join(f"{name} {kept.size}" for name, kept in comparison.kept.items())
    heads = comparison.settings["heads"]
    yield from _wrapped(f"circuits of {heads} heads: base {comparison.base.size}, {sizes}")
    by_seeds = bool(comparison.settings["replicates"])
    p = "p seed" if by_seeds else "p base"
    yield _KEPT.format("", "", "value", "95%", "matched", "chance", "null 95%", "ceiling", "halves", p)
    for name, kept in comparison.kept.items():
        yield from _kept_rows(name, kept, by_seeds=by_seeds)
    yield "95%: bootstrap over prompts. matched: at the base's size. null: the model's heads permuted."
    yield "ceiling: the base on two halves of the prompts; halves: base and model on the two."
    yield f"{p}: against the model being {'a replicate of the base' if by_seeds else 'the base on other prompts'}."
    yield "lost, gained: small p where more heads go than come."
    if comparison.differences:
        yield from _wrapped(_TIES)
    for one in comparison.differences:
        yield ""
        yield from _difference_rows(one)


def _kept_rows(name: str, kept: Kept, *, by_seeds: bool) -> Iterator[str]:
    for measure, one in kept.measures.items():
        yield _KEPT.format(
            _short(name),
            _NAMES[measure],
            _number(one.value),
            _band(one.interval),
            _number(one.matched),
            _number(one.chance),
            _band(one.null),
            "–" if one.ceiling is None else _number(one.ceiling.mean),
            "–" if one.at_halves is None else _number(one.at_halves.mean),
            _p(one.p_seeds if by_seeds else one.p_prompts),
        )
        name = ""
    yield f"{'':<12} lost {kept.lost}, gained {kept.gained}, p {_p(kept.p_lost)}"


def _difference_rows(one: Difference) -> Iterator[str]:
    exchanged = "heads of single runs" if one.test == "heads" else "whole runs"
    yield f"{_short(one.second)} less {_short(one.first)}; p, exchanging {exchanged}: small where the first keeps less"
    yield _GAP.format("", "", "gap", "95%", "p", "at most")
    for measure, gap in one.gaps.items():
        p = gap.p
        row = (f"{gap.value:+.3f}", _band(gap.interval), _p(p), f"{p.at_most:.3f}")
        yield _GAP.format("", _NAMES[measure], *row)
    yield _VULNERABLE.format("vulnerable", "delta", "heads", "reverse", "in base", "reverse", "p")
    for found in one.vulnerable:
        counts = (found.count, found.reverse, found.in_base, found.reverse_in_base)
        yield _VULNERABLE.format("", f"{found.delta:g}", *counts, _p(found.p))
    if one.broken is not None:
        named = [f"{layer}:{head}" for layer, head in zip(*one.broken.heads.nonzero(), strict=True)]
        more = f" and {len(named) - _LISTED} more" if len(named) > _LISTED else ""
        yield from _wrapped(f"vulnerable at {one.broken.delta:g}: {','.join(named[:_LISTED])}{more}")


def _short(name: str) -> str:
    name = name.encode("unicode_escape").decode()
    return name if len(name) <= _WIDTH else name[: _WIDTH - 3] + "..."


def _number(value: float) -> str:
    return f"{value:.3f}"


def _band(band: Band | None) -> str:
    return "–" if band is None else f"{band.low:.3f}–{band.high:.3f}"


def _p(p: PValue | None) -> str:
    if p is None:
        return "–"
    return "<0.001" if p.value < 0.001 else f"{p.value:.3f}"


def _wrapped(text: str) -> Iterator[str]:
    import textwrap

    yield from textwrap.wrap(text, 100)
