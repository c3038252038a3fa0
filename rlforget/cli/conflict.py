"""`conflict`: which changes hurt an earlier domain, and where in the network they lie."""

from __future__ import annotations

import csv
import io
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from rlforget.cli import output
from rlforget.cli.change_source import Along, Subject, source_of
from rlforget.cli.conflict_parts import PARTS, Case, Finding, lacking
from rlforget.cli.history import In
from rlforget.cli.measurement import FRACTION, Measurement, Own, Where
from rlforget.cli.options import Base, Device, DryRun, Force, Json, Samples, Seed, misused
from rlforget.cli.together import take_own_gpu
from rlforget.cli.tuning import Lam, Mu, RowBudget, RowKind, Tuning
from rlforget.errors import RlforgetError


def conflict(
    model: Subject = None,
    delta: Along = None,
    restore: Annotated[list[str] | None, typer.Option(help="A domain that lost; may be repeated.")] = None,
    protect: Annotated[
        list[str] | None,
        typer.Option(help="A domain to spare; may be repeated. In a history, those committed since."),
    ] = None,
    parts: Annotated[
        str | None,
        typer.Option(
            help=f"What to measure, with commas: {', '.join(PARTS)}.", show_default="all that the options allow"
        ),
    ] = None,
    rule: Annotated[
        str,
        typer.Option(
            help="The score that the conflict set is chosen by: subspace, two_fisher, fisher, taylor, opposed, or the "
            "controls magnitude, random."
        ),
    ] = "subspace",
    budget: Annotated[
        float, typer.Option(help="Size of the conflict set, as a share of all coordinates.", min=0.0, max=1.0)
    ] = FRACTION,
    top: Annotated[
        float, typer.Option(help="Share of channels and heads that count as a domain's route.", min=0.0, max=1.0)
    ] = 0.1,
    lam: Lam = None,
    mu: Mu = None,
    rows: RowKind = None,
    row_budget: RowBudget = None,
    where: Where = None,
    own: Own = None,
    samples: Samples = 256,
    seed: Seed = 0,
    evaluate: Annotated[
        bool, typer.Option("--evaluate", help="Measure the subspace's curve by rewards, too, on evaluation prompts.")
    ] = False,
    history: In = None,
    base: Base = None,
    device: Device = "auto",
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Save JSON, tables and plots in a new folder.", metavar="FOLDER"),
    ] = None,
    force: Force = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Show which changes hurt an earlier domain and where they lie: conflict set, routes, gradients, geometry."""
    from rlforget.weights.ranks import from_first

    asked = _asked(parts)
    tuning = Tuning(lam, mu, rows, row_budget)
    tuning.check(rule if "set" in asked else "random", asked)
    source = source_of(
        model,
        delta,
        history,
        base,
        restore=list(restore or []),
        protect=list(protect or []),
        apart=False,
        hint="--restore",
    )
    measurement = Measurement(
        rule if "set" in asked else "random",
        restore or [],
        source.protect,
        own,
        where=where,
        samples=samples,
        seed=seed,
        tuning=tuning,
    )
    left_out = {part: f"it needs {lack}" for part in asked if (lack := lacking(part, measurement)) is not None}
    if parts is not None and left_out:
        part, why = next(iter(left_out.items()))
        raise misused("--parts", found=f"{part}, but {why}", fix="Give that, or leave the part out.")
    _check_out(out, force=force)
    take_own_gpu()
    loaded, changes, _ = source.load(device)
    case = Case(measurement, loaded, changes, budget, top, evaluate)
    found: dict[str, Finding] = {}
    for part in asked:
        if part in left_out:
            continue
        try:
            found[part] = PARTS[part](case)
        except RlforgetError as fault:
            if parts is not None or part == "set":
                raise
            left_out[part] = str(fault)
    summary = {
        "changed": changes.changed,
        "numel": changes.numel,
        "samples": samples,
        **{part: finding.json for part, finding in found.items()},
        "left_out": left_out,
    }
    if out is not None and not dry_run:
        from_first(partial(_save, out, summary, found, force=force))
    if as_json:
        output.json_object({**summary, "out": None if dry_run else out})
        return
    for number, finding in enumerate(found.values()):
        if number:
            output.line()
        finding.show()
    for part, why in left_out.items():
        output.note(f"left out {part}: {why}")
    if out is not None:
        output.written(out, dry_run=dry_run)


def _asked(parts: str | None) -> list[str]:
    """Return the parts to measure, in their order."""
    if parts is None:
        return list(PARTS)
    wanted = [part.strip() for part in parts.split(",")]
    unknown = next((part for part in wanted if part not in PARTS), None)
    if unknown is not None:
        raise misused("--parts", found=repr(unknown), fix=f"Name some of {', '.join(PARTS)}, with commas.")
    return [part for part in PARTS if part in wanted]


def _check_out(out: Path | None, *, force: bool) -> None:
    """Hold that the results could be saved, before anything is measured."""
    if out is None:
        return
    from rlforget.report.drawing import check_drawing
    from rlforget.weights.atomic import check_free

    check_free(out, force=force)
    check_drawing()


def _save(out: Path, summary: dict[str, Any], found: dict[str, Finding], *, force: bool) -> None:
    """Write `conflict.json`, and a table and a plot for each part."""
    from rlforget.report.conflict_picture import draw
    from rlforget.weights.atomic import new_file

    out.mkdir(exist_ok=True)

    def write(name: str, content: bytes) -> None:
        with new_file(out / name, force=force) as file:
            file.write(content)

    for part, finding in found.items():
        write(f"{part}.csv", _csv(finding.rows))
        write(f"{part}.svg", draw(part, finding.rows))
    write("conflict.json", output.json_text(summary).encode())


def _csv(rows: list[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()
