"""`experiment`: the recovery study, from a YAML file to a table and a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rlforget.cli import output
from rlforget.cli.options import DryRun, Json, OutFolder, misused


def experiment(
    config: Annotated[Path, typer.Argument(help="A YAML file such as configs/miniature.yaml.", metavar="CONFIG")],
    out: OutFolder,
    fast: Annotated[bool, typer.Option("--fast", help="Few pairs, short stages: under ten minutes.")] = False,
    jobs: Annotated[int, typer.Option(help="Processes that work at a time, one thread each.", min=1)] = 1,
    only: Annotated[
        list[str] | None, typer.Option(help="A part: pairs, sequence, deep, bases, sizes; may be repeated.")
    ] = None,
    bases: Annotated[Path, typer.Option(help="Where bases that the study pretrains lie.", metavar="FOLDER")] = Path(
        "runs/bases"
    ),
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Run the recovery study: every pair of domains, every rule; kill it at any time and run it again to go on."""
    from rlforget.experiments.recovery_study import load_study, plan_of, run_study
    from rlforget.experiments.recovery_study.courses import PARTS
    from rlforget.training.progress import choose

    study = load_study(config)
    if fast:
        study = study.fast()
    parts = tuple(part for part in PARTS if only is None or part in only)
    if unknown := next((part for part in only or () if part not in PARTS), None):
        raise misused("--only", found=repr(unknown), fix=f"Name one of {', '.join(PARTS)}.")
    planned = plan_of(study, out, bases=bases, parts=parts)
    counts = {name: vars(count) for name, count in planned.items()}
    if dry_run:
        if as_json:
            output.json_object({**counts, "out": None})
        else:
            for name, count in planned.items():
                output.line(f"{name}: {count.done:,} of {count.all:,} done")
            output.written(out, dry_run=True)
        return
    short = " --fast" if fast else ""
    command = f"rlforget experiment {config} -o {out}{short} --jobs {jobs}"  # the parts are those that are in `out`
    written = run_study(study, out, bases=bases, parts=parts, processes=jobs, progress=choose(True), command=command)
    if as_json:
        output.json_object({**counts, "out": out, "files": written})
    else:
        for path in written:
            output.written(path, dry_run=False)
