"""The demo: the main job on one or more seeds, its tables, and its results as JSON."""

from __future__ import annotations

import json
import os
import platform
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import rlforget
from rlforget.domains.miniature.threads import one_thread
from rlforget.errors import OutputError
from rlforget.experiments.main_job import Echo, main_job
from rlforget.experiments.markdown import page
from rlforget.experiments.settings import FAST, FULL, Settings
from rlforget.experiments.summary import summarise
from rlforget.experiments.tables import main_tables, summary_table
from rlforget.training import Progress

RESULTS_FILE = "results.json"
PAGE_FILE = "results.md"


def run_demo(
    seeds: list[int], out: Path, *, fast: bool = False, echo: Echo, progress: Progress, force: bool = False
) -> dict[str, Any]:
    """Run the main job for each seed, print its tables, and write `results.json`, `results.md` and the
    deltas into `out`.

    Args:
        seeds: Seeds of the fine-tunes; the base is the shipped miniature.
        out: The run's folder, which appears when the run is done; until then it is `OUT.unfinished`, and a run that was
            interrupted goes on there at the first stage that is not finished. Under `force` a former run is replaced.
        fast: The short form: fewer steps, prompts and samples. Its effects are smaller.
        echo: Called with each line to show.
        progress: Told of each stage's steps.

    Returns:
        What `results.json` holds.

    Raises:
        OutputError: `out` exists and `force` is not given, or it is not the folder of a former demo.
    """
    check_room(out, force=force)
    settings = FAST if fast else FULL
    draft = _draft(out, settings)
    runs: list[dict[str, Any]] = []
    for seed in seeds:
        with one_thread():
            runs.append(main_job(seed, draft / f"seed-{seed}", settings, echo=echo, progress=progress))
        for line in main_tables(runs[-1]):
            echo(line)
    results: dict[str, Any] = {
        "format": "rlforget-demo",
        "version": 1,
        "fast": fast,
        "settings": asdict(settings),
        "versions": _versions(),
        "machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "runs": runs,
        "summary": summarise(runs),
    }
    (draft / RESULTS_FILE).write_text(json.dumps(results, indent=1) + "\n")
    (draft / PAGE_FILE).write_text(page(results, _command(seeds, fast)))
    shutil.rmtree(out, ignore_errors=True)
    draft.rename(out)
    if len(runs) > 1:
        for line in summary_table(results["summary"]):
            echo(line)
    return results


def _draft(out: Path, settings: Settings) -> Path:
    """Return the folder that a run is made in; one that was interrupted, of the same settings, is gone on with."""
    draft = out.with_name(f"{out.name}.unfinished")
    made_by = draft / "settings.json"
    wanted = json.dumps(asdict(settings))
    if not made_by.is_file() or made_by.read_text() != wanted:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        made_by.write_text(wanted)
    return draft


def _command(seeds: list[int], fast: bool) -> str:
    return " ".join(["rlforget demo", *(f"--seed {seed}" for seed in seeds), *(["--fast"] if fast else [])])


def _versions() -> dict[str, str]:
    import transformers
    import trl

    return {"rlforget": rlforget.__version__} | {m.__name__: m.__version__ for m in (torch, transformers, trl)}


def check_room(out: Path, *, force: bool) -> None:
    """Hold that a run may begin at `out`: nothing is there, or under `force` an empty folder or a former run.

    Raises:
        OutputError: It may not.
    """
    if not os.path.lexists(out):
        return
    former = out.is_dir() and (not any(out.iterdir()) or any(out.glob(RESULTS_FILE)) or any(out.glob("seed-*/stages")))
    if force and former:
        return
    found, fix = "an existing file or folder", "Choose another folder, or pass --force to replace a run."
    if force:
        found, fix = "something that is no run of the demo", "Choose another folder."
    raise OutputError(str(out), expected="a folder that does not exist yet", found=found, fix=fix)
