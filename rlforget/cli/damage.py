"""`damage`: how much a later change hurt an earlier domain, predicted and measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from rlforget.cli import output
from rlforget.cli.change_source import Along, Subject, source_of
from rlforget.cli.history import In
from rlforget.cli.options import Base, Device, Force, Json, Samples, Seed, misused

if TYPE_CHECKING:
    from rlforget.interference import Damage, DamageCurve, DamagePart

_MOST_PARTS = 20


def damage(
    model: Subject = None,
    delta: Along = None,
    domain: Annotated[
        list[str] | None,
        typer.Option(help="A domain that may have lost; may be repeated. In a history, since its last stage each."),
    ] = None,
    curvature: Annotated[
        Literal["ggn", "fisher", "hessian"], typer.Option(help="What stands for the loss's second derivative.")
    ] = "ggn",
    points: Annotated[
        int,
        typer.Option(
            help="At how many places along the change it is taken; 1: its beginning. 3 predict large changes better.",
            min=1,
        ),
    ] = 1,
    by: Annotated[
        Literal["tensor", "layer", "kind"] | None, typer.Option(help="Also say where the damage comes from.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw predicted against measured: an .svg or .png file.", metavar="FILE")
    ] = None,
    samples: Samples = 256,
    seed: Seed = 0,
    history: In = None,
    base: Base = None,
    device: Device = "auto",
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Tell how much the changes hurt an earlier domain: the rise of its loss, predicted and measured."""
    from rlforget import domains
    from rlforget.interference import damage as predict
    from rlforget.interference import damage_curve
    from rlforget.report.damage_picture import save_damage_picture
    from rlforget.report.drawing import check_picture

    names = list(dict.fromkeys(domain or []))
    if not names:
        raise misused("--domain", found="none", fix="Name the domain that may have lost, e.g. math.")
    source = source_of(model, delta, history, base, restore=names, protect=[], apart=True, hint="--domain")
    wanted = [domains.get(name) for name in names]
    if plot is not None:
        check_picture(plot, force=force)
    loaded, whole, apart = source.load(device)
    found: dict[str, tuple[Damage, DamageCurve]] = {}
    for number, hurt in enumerate(wanted):
        given = loaded.model, whole if apart is None else apart[number], hurt
        with output.step(f"predicting the damage to {hurt.name}, {samples} completions"):
            predicted = predict(
                *given,
                curvature=curvature,
                points=points,
                by=by,
                samples=samples,
                seed=seed,
                tokenizer=loaded.tokenizer,
            )
        with output.step(f"measuring the damage to {hurt.name}"):
            measured = damage_curve(*given, samples=samples, seed=seed, tokenizer=loaded.tokenizer)
        found[hurt.name] = predicted, measured
    if plot is not None:
        save_damage_picture(found, plot, force=force)
    if as_json:
        pairs = {
            name: {"predicted": predicted.to_dict(), "measured": measured.to_dict()}
            for name, (predicted, measured) in found.items()
        }
        output.json_object({"domains": pairs, "plot": plot})
        return
    _show_domains(found, curvature)
    for name, (predicted, _) in found.items():
        if predicted.parts:
            _show_parts(name, predicted.parts)
    if plot is not None:
        output.written(plot, dry_run=False)


def _show_domains(found: dict[str, tuple[Damage, DamageCurve]], curvature: str) -> None:
    at = next(iter(found.values()))[0].points
    second = f"second, {curvature}" if len(at) == 1 else f"remainder, {curvature} at {len(at)} points"
    columns = ("domain", "first order", second, "predicted", "measured", "KL", "KL back")
    rows = []
    for name, (predicted, measured) in found.items():
        rows.append(
            (
                name,
                _give(predicted.first, predicted.first_stderr),
                _give(predicted.second, predicted.second_stderr),
                _give(predicted.total, predicted.total_stderr),
                _give(measured.rise[-1], measured.rise_stderr[-1]),
                _give(measured.kl[-1].mean, measured.kl[-1].stderr),
                _give(measured.reverse.mean, measured.reverse.stderr),
            )
        )
    output.table(columns, rows)
    output.line("rise of −log π in nats a completion ± its standard error; KL of the earlier from now, and back")


def _show_parts(domain: str, parts: dict[str, DamagePart]) -> None:
    """Write the groups that do most, in the order of the model."""
    most = set(sorted(parts, key=lambda name: -abs(parts[name].row_sum))[:_MOST_PARTS])
    rows = [
        (
            name,
            _give(part.first, part.first_stderr),
            _give(part.second, part.second_stderr),
            _give(part.row_sum, part.row_sum_stderr),
        )
        for name, part in parts.items()
        if name in most
    ]
    output.line()
    output.table((domain, "first order", "second, alone", "beside the rest"), rows)
    if len(parts) > len(rows):
        output.line(f"and {len(parts) - len(rows)} others, which do less; --json has them all")


def _give(value: float, error: float) -> str:
    return f"{value:.3g}±{error:.2g}"
