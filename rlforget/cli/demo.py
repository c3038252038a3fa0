"""`demo`, `miniature`, `report`: the whole story on a small model, and the page that tells it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from rlforget.cli import output
from rlforget.cli.options import DryRun, Force, Json, OutFolder, Seed

REPORT, PICTURE = "report.html", "demo.png"


def demo(
    seed: Annotated[
        list[int] | None, typer.Option(help="Seed of the whole run; given several times, means are shown.", min=0)
    ] = None,
    fast: Annotated[bool, typer.Option("--fast", help="Shorter stages and fewer prompts: under 90 seconds.")] = False,
    out: OutFolder = Path("runs/demo"),
    force: Force = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Train four skills in a row, find what hurt the first ones, undo it, and compare."""
    seeds = seed or [0]
    from rlforget.experiments.demo import check_room

    check_room(out, force=force)
    if dry_run:
        plan = {"seeds": seeds, "fast": fast, "out": None}
        output.json_object(plan) if as_json else output.written(out, dry_run=True)
        return
    from rlforget.cli.doctor import need

    need("train", "report")
    from rlforget.experiments.demo import PAGE_FILE, run_demo
    from rlforget.report import save_picture, write_report
    from rlforget.training.progress import choose

    echo = output.note if as_json else output.line
    result = run_demo(seeds, out, fast=fast, echo=echo, progress=choose(True), force=force)
    page = write_report(out, out / REPORT, force=force)
    save_picture(result, out / PICTURE, force=force)
    if as_json:
        output.json_object({**result, "out": out, "report": page, "picture": out / PICTURE})
    else:
        for written in (out, out / PAGE_FILE, out / PICTURE, page):
            output.written(written, dry_run=False)


def miniature(
    seed: Seed = 0,
    size: Annotated[str, typer.Option(help="How many parameters: 0.2M, as shipped, 1M or 4M.")] = "0.2M",
    out: OutFolder = Path("runs/miniature"),
    force: Force = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Train a miniature model from nothing: five minutes for the shipped size, about twenty for 4M."""
    from rlforget.domains.miniature.pretrain import recipe_for
    from rlforget.weights.atomic import check_new_folder, new_folder

    recipe_for(size, seed)  # an unknown size is told of before anything is made
    if not dry_run:
        out.parent.mkdir(parents=True, exist_ok=True)
    if out.parent.is_dir():
        check_new_folder(out, force=force)
    if dry_run:
        output.json_object({"seed": seed, "out": None}) if as_json else output.written(out, dry_run=True)
        return
    from rlforget.domains.miniature import path
    from rlforget.domains.miniature.build import SCORES_FILE, build

    with new_folder(out, force=force) as draft, _phases() as tell:
        record = build(seed, draft, tell, size=size)
    if as_json:
        output.json_object({**record, "out": out})
        return
    shipped = json.loads((path() / SCORES_FILE).read_text(encoding="utf-8"))["scores"]
    rows = [
        (
            name,
            *(f"{one['sampled']:.3f} ± {one['sampled_stderr']:.3f}" for one in (score, shipped[name])),
            *(f"{one['greedy']:.3f}" for one in (score, shipped[name])),
        )
        for name, score in record["scores"].items()
    ]
    output.table(("domain", "sampled reward", "as shipped", "greedy", "as shipped"), rows)
    output.written(out, dry_run=False)


def report(
    run: Annotated[
        Path,
        typer.Argument(help="The folder of a run (demo, sequence) or of a history, or what `circuits compare` saved."),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The page to write; report.html in that folder by default.")
    ] = None,
    force: Force = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Write one self-contained HTML page about a run, about a history, or about circuits alone."""
    from rlforget.report import write_report
    from rlforget.report.page import check_run
    from rlforget.weights.atomic import check_free

    check_run(run)
    page = out or (run.parent if run.is_file() else run) / REPORT
    check_free(page, force=force)
    if not dry_run:
        with output.step(f"drawing {run}"):
            page = write_report(run, page, force=force)
    if as_json:
        output.json_object({"run": run, "out": None if dry_run else page})
    else:
        output.written(page, dry_run=dry_run)


@contextmanager
def _phases() -> Iterator[Callable[[str, int, int, float], None]]:
    """Turn (phase, step, steps, loss) into the progress of one task a phase."""
    from rlforget.training.progress import choose

    shown, current = choose(True), ""

    def tell(phase: str, step: int, steps: int, loss: float) -> None:
        nonlocal current
        if phase != current:
            shown.stop()
            shown.start(phase, steps)
            current = phase
        shown.advance(step + 1, {"loss": loss})

    try:
        yield tell
    finally:
        shown.stop()
