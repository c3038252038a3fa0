"""`rollback`: undoing just the changes that hurt an earlier domain, without training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from rlforget.cli import models, output
from rlforget.cli.change_source import Along, Subject
from rlforget.cli.history import In
from rlforget.cli.measurement import CORRECTIONS, FRACTION, SEVERAL_STAGES, Measurement, Own, Where
from rlforget.cli.options import (
    Base,
    Device,
    DryRun,
    Evaluate,
    Force,
    InPlace,
    Json,
    OutFolderOrNone,
    Samples,
    Seed,
    misused,
)
from rlforget.cli.rollback_places import CheckpointPlace, Place, place_of
from rlforget.cli.tuning import Lam, Mu, RowBudget, RowKind, Tuning

if TYPE_CHECKING:
    from rlforget.delta import Delta
    from rlforget.recovery import Rollback, Search
    from rlforget.recovery.on_disk import Control
    from rlforget.recovery.undo import RollbackReport

_RULE = "dense_twice"
_SCORE = "subspace"  # where a budget alone is given
_CONTROLS = ("magnitude", "random")  # they ask nothing of the model
_VALIDATION = 256


def rollback(
    model: Subject = None,
    delta: Along = None,
    out: OutFolderOrNone = None,
    in_place: InPlace = False,
    restore: Annotated[list[str] | None, typer.Option(help="A domain to restore; may be repeated.")] = None,
    protect: Annotated[
        list[str] | None,
        typer.Option(help="A domain to spare; may be repeated. In a history, those committed since."),
    ] = None,
    auto: Annotated[
        bool, typer.Option("--auto", help="Search over rules, budgets and λ, and take the best for these domains.")
    ] = False,
    rule: Annotated[
        str | None,
        typer.Option(
            help="What to undo: dense, dense_twice, kronecker, soft; or old bits by the score subspace, two_fisher, "
            "fisher, taylor, opposed, or the controls magnitude, random.",
            show_default=_RULE,
        ),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(
            help="How many coordinates get old bits, as a share of all; alone, by `subspace`.",
            min=0.0,
            max=1.0,
            show_default=str(FRACTION),
        ),
    ] = None,
    strength: Annotated[float, typer.Option(help="Share of each change to undo.", min=0.0, max=1.0)] = 1.0,
    lam: Lam = None,
    mu: Mu = None,
    rows: RowKind = None,
    row_budget: RowBudget = None,
    where: Where = None,
    own: Own = None,
    samples: Samples = 256,
    validation: Annotated[
        int | None,
        typer.Option(
            help="Prompts a domain that --auto judges by; it reports on twice as many others.",
            min=2,
            show_default=str(_VALIDATION),
        ),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw what --auto tried, as .svg or .png.", metavar="FILE")] = None,
    seed: Seed = 0,
    evaluate: Evaluate = False,
    history: In = None,
    base: Base = None,
    device: Device = "auto",
    force: Force = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Undo just the changes that hurt earlier domains: in a new checkpoint, in place, or as a history's new stage."""
    wanted = list(restore or [])
    by_hand = {"--rule": rule, "--budget": budget, "--own": own, "--evaluate": evaluate or None, "--where": where}
    by_hand["--strength"] = None if strength == 1.0 else strength
    for option, value in by_hand.items():
        if auto and value is not None:
            raise misused(option, found="--auto, which sees to that itself", fix="Leave one out.")
    for option, value in {"--plot": plot, "--validation": validation}.items():
        if not auto and value is not None:
            raise misused(option, found="no --auto", fix="Leave it out, or search with --auto.")
    tuning = Tuning(lam, mu, rows, row_budget)
    if auto:
        tuning.refuse(found="--auto, which sees to that itself", fix="Leave one out.")
    if budget is not None and rule in CORRECTIONS:
        raise misused(
            "--budget",
            found=f"the rule {rule!r}, which corrects every coordinate",
            fix="Leave it out, or take a rule that puts back old bits, such as subspace.",
        )
    if evaluate and not wanted and not protect and delta is not None:
        raise misused("--evaluate", found="no domain", fix="Name some with --restore and --protect.")
    if both := sorted(set(wanted) & set(protect or [])):
        raise misused("--protect", found=f"{both[0]!r}, which --restore names too", fix="Leave it out of one of them.")
    chosen = rule or (_RULE if budget is None else _SCORE)
    if not auto:
        tuning.check(chosen)
    place = place_of(
        model,
        delta,
        history,
        base,
        out=out,
        in_place=in_place,
        restore=wanted,
        protect=list(protect or []),
        apart=not auto and chosen in SEVERAL_STAGES,
        force=force,
    )
    measured: dict[str, Any] = {"samples": samples, "seed": seed}
    measurement = Measurement(
        chosen,
        wanted,
        place.protect,
        own,
        where=where,
        corrections=True,
        tuning=tuning,
        **measured,
    )
    if auto:
        judging = _VALIDATION if validation is None else validation
        _automatic(place, measurement, plot, device, judging, force=force, dry_run=dry_run, as_json=as_json)
        return
    if isinstance(place, CheckpointPlace) and chosen in _CONTROLS and strength == 1.0 and not evaluate:
        file = place.streams()
        if file is not None:  # no model is asked, and so none is loaded
            share = FRACTION if budget is None else budget
            report, kept = place.put_back(file, cast("Control", chosen), share, seed=seed, dry_run=dry_run)
            if as_json:
                output.json_object({**report.to_dict(), "rewards": None, **kept})
                return
            output.line(f"rolled back what changed since {place.since}, by {chosen}")
            _show_written(report, file.numel)
            place.show(kept, dry_run=dry_run)
            return
    loaded, changes, since = place.load(device)
    what = measurement.what(loaded, changes, budget, since=since)
    shown = measurement.restore + measurement.protect if evaluate else []
    before = models.rewards(loaded, shown, **measured)
    done = _undo(loaded, changes, what, strength=strength, seed=seed)
    after = models.rewards(loaded, shown, **measured)
    config = {"rule": measurement.rule, "budget": budget, "strength": strength, **tuning.given(), **measured}
    domains = {"restore": wanted, "protect": place.protect}
    message = f"rolled back toward {', '.join(wanted) or 'before'} by {measurement.rule}"
    kept = place.save(
        loaded, {"message": message, "config": config | domains, "metrics": done.report.to_dict()}, dry_run=dry_run
    )
    if as_json:
        rewards = models.rewards_json(before, after) if evaluate else None
        output.json_object({**done.report.to_dict(), "rewards": rewards, **kept})
        return
    if evaluate:
        models.show_rewards(before, after)
    spared = f"; spared {', '.join(place.protect)}" if place.protect else ""
    output.line(f"rolled back what changed since {place.since}, by {measurement.rule}{spared}")
    _show_written(done.report, changes.numel)
    place.show(kept, dry_run=dry_run)


def _automatic(
    place: Place,
    measurement: Measurement,
    plot: Path | None,
    device: str,
    validation: int,
    *,
    force: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Search, roll back what was found, keep it, and say what was done in five lines."""
    from rlforget.recovery import auto_rollback
    from rlforget.report.drawing import check_picture
    from rlforget.report.front import save_front

    if not measurement.protect:
        raise misused(
            "--protect", found="none", fix="Name a domain: --auto weighs what is restored against what is kept."
        )
    if plot is not None:
        check_picture(plot, force=force)
    loaded, changes, _ = place.load(device)
    with output.steps() as say:
        search = auto_rollback(
            loaded.model,
            loaded.tokenizer,
            changes,
            restore=measurement.restore,
            protect=measurement.protect,
            samples=measurement.samples,
            validation=validation,
            evaluation=2 * validation,
            seed=measurement.seed,
            say=say,
        )
    for name, why in search.left_out.items():
        output.note(f"{name} {why}: left out of the shares")
    done = _undo(loaded, changes, search.what, strength=1.0, seed=search.seed)
    label = search.chosen.candidate.label
    config = {"rule": label, "samples": measurement.samples, "validation": validation, "seed": search.seed}
    domains = {"restore": list(search.restore), "protect": list(search.protect)}
    message = f"rolled back toward {', '.join(search.restore)} by {label}, found by search"
    kept = place.save(
        loaded, {"message": message, "config": config | domains, "metrics": _metrics(search)}, dry_run=dry_run
    )
    if plot is not None and not dry_run:
        save_front(search, plot, force=force)
    if as_json:
        output.json_object({**search.to_dict(), "rollback": done.report.to_dict(), **kept})
        return
    output.line(
        f"tried {len(search.trials)} rollbacks of what changed since {place.since}, on {validation} prompts each"
    )
    output.line(f"took {label}")
    _show_shares(search, 2 * validation)
    _show_written(done.report, changes.numel)
    place.show(kept, dry_run=dry_run)


def _metrics(search: Search) -> dict[str, float]:
    """What the report says of the chosen rollback, for the stage that keeps it."""
    shares = {"regained": search.report.regained, "kept": search.report.kept}
    told = {name: share.value for name, share in shares.items()}
    return told | {f"{name}_stderr": share.stderr for name, share in shares.items()} | search.report.rewards


def _show_shares(search: Search, prompts: int) -> None:
    report = search.report

    def course(names: tuple[str, ...]) -> str:
        then, now, after = search.report_then, search.report_now, report.rewards
        return ", ".join(f"{name} {then[name]:.3f} → {now[name]:.3f} → {after[name]:.3f}" for name in names)

    regained, kept = (f"{one.value:.0%} ± {one.stderr:.0%}" for one in (report.regained, report.kept))
    output.line(
        f"on {prompts} evaluation prompts regained {regained} ({course(search.restore)}), "
        f"kept {kept} ({course(search.protect)})"
    )


def _undo(loaded: models.Loaded, changes: Delta, what: Any, *, strength: float, seed: int) -> Rollback:
    from rlforget.recovery import rollback as undo_part

    return undo_part(loaded.model, changes, what, strength=strength, seed=seed)


def _show_written(report: RollbackReport, numel: int) -> None:
    moved = output.percent(report.norm_share)
    output.line(f"{report.written:,} of {numel:,} coordinates written, {moved} of the change's norm")
