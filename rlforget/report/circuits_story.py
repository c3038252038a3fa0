"""What a run's circuits say, as the titles of their plots."""

from __future__ import annotations

import math

from rlforget.report.circuits_file import Circuits, Difference, HeadMap, Kept, Way
from rlforget.report.wording import NONE, listing, moved, number, percent, plural, signed

Head = tuple[int, int]


def map_finding(found: Circuits, shown: HeadMap) -> str:
    """Say how many heads a model's circuit has, and how many of the base's are among them."""
    heads = shown.heads
    total = sum(map(len, shown.scores))
    if shown is found.base:
        return f"{shown.name}: {len(heads)} of {total} heads make up the circuit for {found.task}"
    common = heads & found.base.heads
    said = f"{shown.name}: {len(common)} of the base's {plural(len(found.base.heads), 'head')} are still in the circuit"
    return f"{said}, with {plural(len(heads - common), 'other')}"


def difference_finding(found: Circuits, shown: HeadMap) -> str:
    """Say which head lost most of its effect, and which gained most."""
    changes = differences(found.base, shown)
    known = [(value, (i, j)) for i, row in enumerate(changes) for j, value in enumerate(row) if math.isfinite(value)]
    if not known:
        return f"From {found.base.name} to {shown.name}: 0 heads to compare"
    (least, worst), (most, best) = min(known), max(known)
    said = [f"{named(worst)} lost most ({signed(least)})"] if least < 0 else []
    said += [f"{named(best)} gained most ({signed(most)})"] if most > 0 else []
    return f"From {found.base.name} to {shown.name}: {listing(said) or f'{len(known)} heads are as they were'}"


def differences(base: HeadMap, tuned: HeadMap) -> list[list[float]]:
    """Return the tuned model's effects less the base's."""
    rows = zip(base.scores, tuned.scores, strict=True)
    return [[after - before for before, after in zip(old, new, strict=True)] for old, new in rows]


def named(head: Head) -> str:
    """Write a head as layer:head."""
    return f"head {head[0]}:{head[1]}"


def retention_finding(kept: list[Kept]) -> str:
    """Say what each fine-tune kept of the base's circuit, beside chance and the ceiling."""
    said = [
        f"{one.name} keeps {percent(one.retention)} of the base's circuit, "
        f"chance {percent(one.chance.mean)}{_halves(one)}"
        for one in kept
    ]
    return "; ".join(said)


def _halves(one: Kept) -> str:
    if not math.isfinite(one.ceiling):
        return ""
    return f" (on halves of the prompts {percent(one.at_halves)}, where the base itself keeps {percent(one.ceiling)})"


def way_finding(ways: list[Way]) -> str:
    """Say how reward and retention went along each fine-tune."""
    said = [
        f"with {way.name} the reward {moved(way.steps[0].reward, way.steps[-1].reward)} while retention "
        f"{moved(way.steps[0].retention, way.steps[-1].retention)}"
        for way in ways
        if way.steps
    ]
    text = "; ".join(said)
    return text[:1].upper() + text[1:]


def vulnerable_finding(found: Difference) -> str:
    """Say how many heads only the first fine-tune lost, beside how many only the second did."""
    shown = next((one for one in found.vulnerable if one.delta > 0 and one.heads), None)
    if shown is None:
        return f"No head that {found.second} kept was lost by {found.first} by more than δ = 0"
    return (
        f"At δ = {shown.delta:g}, {plural(len(shown.heads), 'head')} that {found.second} kept "
        f"{'was' if len(shown.heads) == 1 else 'were'} lost by {found.first}, and {shown.reverse} the other way round "
        f"(p = {p_text(shown.p)})"
    )


def interval_text(one: Kept) -> str:
    """Write a retention's interval."""
    band = one.interval
    return f"{percent(band.low)} to {percent(band.high)}" if band else NONE


def chance_text(one: Kept) -> str:
    """Write what chance keeps, with the middle 95% of its draws."""
    band = one.chance
    return f"{percent(band.mean)} ({percent(band.low)} to {percent(band.high)})"


def p_text(value: float) -> str:
    """Write a p-value; a small one by its bound."""
    return f"<{number(0.001, 3)}" if value < 0.001 else number(value, 3)
