"""The page about a run, a history, or circuits alone."""

from __future__ import annotations

import shlex
from pathlib import Path

from rlforget.report.circuits_file import CIRCUITS_FILE, COMMAND, Circuits, read_circuits
from rlforget.report.document import document, opening, origin, plotly
from rlforget.report.markup import Html
from rlforget.report.measured_files import DomainDamage, Subspace, read_damage, read_subspace
from rlforget.report.over_seeds import OverSeeds, over_seeds
from rlforget.report.results import RESULTS_FILE, Results, read_results
from rlforget.report.sections import sections
from rlforget.report.sequence_run import is_sequence
from rlforget.report.sparklines import sparklines
from rlforget.report.story import seeds_note, story
from rlforget.report.tables import Cell, Table
from rlforget.report.wording import NONE, number
from rlforget.weights.atomic import check_free, new_file


def write_report(run: Path, out: Path, force: bool = False) -> Path:
    """Write a page about a run, about a history, or about circuits alone.

    Args:
        run: The run's folder, as `rlforget demo` or `rlforget sequence` wrote it, with circuits in it or not; the
            folder of a history; or circuits that `rlforget circuits compare` saved, the file or a folder with it.
        out: The page to write, about 5 MB: the plots' library is in it.
        force: Replace what is there.

    Returns:
        `out`.

    Raises:
        ReportError: The run's results are missing, or they or its circuits are damaged, or of another format or
            version.
        HistoryError: The history's index is damaged, forged or of another version.
        OutputError: `out` exists and `force` is not given, or it cannot be written.
        MissingExtraError: plotly is not installed.
    """
    from rlforget.history.index import is_history
    from rlforget.report.history_page import compose_history

    check_free(out, force=force)
    if is_history(run):
        page = compose_history(run, library=plotly())
    else:
        results, circuits = read_run(run)
        measured = read_damage(run), read_subspace(run)
        page = compose(results, run, library=plotly(), circuits=circuits, measured=measured)
    with new_file(out, force=force) as file:
        file.write(page.encode("utf-8", errors="replace"))  # JSON may hold halves of a character
    return out


def check_run(run: Path) -> None:
    """Hold that there is something that a page can be about, before it is drawn.

    Raises:
        ReportError: There is not, or it is damaged, or of another format or version.
        HistoryError: It is a history whose index is damaged, forged or of another version.
    """
    from rlforget.history.index import is_history, read_index

    if is_history(run):
        read_index(run)
    else:
        read_run(run)
        read_damage(run)
        read_subspace(run)


def read_run(run: Path) -> tuple[Results | None, Circuits | None]:
    """Read what a page is about; not both are None.

    Args:
        run: See `write_report`.

    Raises:
        ReportError: Neither is there, or one is damaged, or of another format or version.
    """
    circuits = read_circuits(run)
    alone = circuits is not None and not (run / RESULTS_FILE).exists() and not is_sequence(run)
    return None if alone else read_results(run), circuits


def compose(
    results: Results | None,
    run: Path,
    *,
    library: str,
    circuits: Circuits | None = None,
    measured: tuple[list[DomainDamage] | None, Subspace | None] = (None, None),
) -> str:
    """Build the page of a run.

    Args:
        results: The run's results; without any the page is about circuits alone.
        run: The run's folder, or the circuits' file, for the commands at the end.
        library: The source of plotly.js.
        circuits: The run's circuits, where it has some.
        measured: The damage and the conflict subspace that were measured on it, likewise.
    """
    found = None if results is None else over_seeds(results)
    parts = list(sections(found, circuits, *measured))
    if results is None or found is None:
        above = opening("Which attention heads a task needs, and what fine-tuning kept of them", "", [])
        return document("circuits", above, parts, _origin_of_circuits(run), library=library)
    title = " → ".join(stage.name for stage in found.stages) or "a run"
    return document(title, _opening(results, found), parts, _origin(results, run), library=library)


def _opening(results: Results, found: OverSeeds) -> Html:
    short = " The short form of the demo: fewer steps, prompts and samples, and smaller effects."
    note = seeds_note(found.seeds) + (short if results.fast else "")
    undone = ", and what undoing gave back" if found.repairs else ""
    heading = f"What fine-tuning changed{', ' if undone else ' and '}what it cost{undone}"
    return opening(heading, note, story(found), sparklines(found))


def _origin(results: Results, run: Path) -> Html:
    """Versions, seeds, settings, and the commands that make the run and the page again."""
    seeds = " ".join(f"--seed {one.seed}" for one in results.runs)
    folder = shlex.quote(str(run))
    demo = f"rlforget demo {seeds}{' --fast' if results.fast else ''} --out {folder}"
    commands = [results.command or demo, f"rlforget report {folder}"]
    took = [f"seed {one.seed}: {number(one.seconds, 0)} s" for one in results.runs if one.seconds is not None]
    facts = [("seeds", ", ".join(str(one.seed) for one in results.runs))]
    facts += [
        (f"fingerprint of the base's weights, seed {one.seed}", one.base_weights)
        for one in results.runs
        if one.base_weights
    ]
    facts += [("machine", results.machine)] if results.machine else []
    facts += [("time", ", ".join(took))] if took else []
    facts += [(f"version of {name}", version) for name, version in results.versions.items()]
    facts += results.settings.items()
    rows: list[list[str | Cell]] = [[what, value] for what, value in facts]
    settings = Table("Seeds, machine, versions and settings", ["what", "value"], rows)
    return origin("The run and this page are", commands, settings, *_weights(results))


def _weights(results: Results) -> list[Table]:
    """The weights after every stage by their fingerprints, and how each was trained; nothing where that is not told."""
    stages = [(one.seed, stage) for one in results.runs for stage in one.stages if stage.weights or stage.config]
    rows: list[list[str | Cell]] = [
        [stage.name, Cell(str(seed), (float(seed),)), stage.weights or NONE, stage.config or NONE]
        for seed, stage in stages
    ]
    head = ["stage", "seed", "fingerprint of its weights", "how it was trained"]
    return [Table("The weights after every stage", head, rows)] if rows else []


def _origin_of_circuits(run: Path) -> Html:
    commands = [f"{COMMAND} -o {CIRCUITS_FILE}", f"rlforget report {shlex.quote(str(run))}"]
    return origin("The circuits and this page are", commands)
