"""The change that a command looks at: what led to a checkpoint, or what came in a history since a domain's stage."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol

import typer

from rlforget.cli import models, output
from rlforget.cli.measurement import NOTHING_TO_DO, load_changes, load_fitting
from rlforget.cli.options import misused

if TYPE_CHECKING:
    from rlforget.delta import Delta
    from rlforget.history import History

ROLLED_BACK = "rolled_back_since"  # in the configuration of the stage that a rollback makes

Subject = Annotated[
    str | None,
    typer.Argument(help="A history, a checkpoint folder, or `miniature`; else the history here.", metavar="MODEL"),
]
Along = Annotated[
    Path | None,
    typer.Argument(help="For a checkpoint, the *.delta.safetensors file that led to it.", metavar="DELTA"),
]


class Source(Protocol):
    """A model, and the later change that led to it.

    Attributes:
        protect: The domains to spare, by name.
        since: What the change began with, for people.
    """

    protect: list[str]
    since: str

    def load(self, device: str) -> tuple[models.Loaded, Delta, list[Delta] | None]:
        """Load the model and the change, or end the command where nothing changed.

        Returns:
            The model; the change; and where domains are looked at from stages of their own, the change since each.
        """


class CheckpointSource:
    """A checkpoint folder and the delta file that leads to it."""

    def __init__(self, model: str, delta: Path, protect: list[str]) -> None:
        self._model, self._delta = model, delta
        self.protect, self.since = protect, f"the beginning of {delta.name}"

    def load(self, device: str) -> tuple[models.Loaded, Delta, list[Delta] | None]:
        """Load the delta and the model, which has to be at its after bits."""
        changes = load_changes(self._delta, self._model)
        return load_fitting(self._model, changes, device), changes, None


class HistorySource:
    """A history: what changed between the stage of some domains and HEAD.

    Args:
        history: The history.
        restore: Those domains, as they were committed.
        protect: The domains to spare; none: those committed since.
        apart: Whether each domain is looked at from its own last stage. Else all are from the last stage of any.
    """

    def __init__(self, history: History, restore: list[str], protect: list[str], *, apart: bool) -> None:
        from rlforget.errors import HistoryError
        from rlforget.history.stage import lineage

        index = history.index
        line = list(lineage(index.by_id, index.head))
        # A rollback is no stage that a skill was learnt in: the next one goes back to where it was.
        trained = [None if ROLLED_BACK in stage.config else stage.domain for stage in line]
        for domain in restore:
            if domain not in trained:
                raise HistoryError(
                    str(history.folder),
                    expected=f"a stage of the domain {domain!r} on the way to HEAD",
                    found=", ".join(dict.fromkeys(one for one in reversed(trained) if one)) or "no domain",
                    fix="Name one of those, or commit its stage with --domain.",
                )
        places = [trained.index(domain) for domain in restore]
        last = min(places)
        self._farthest = line[max(places) if apart else last]
        later = reversed(trained[: line.index(self._farthest)])
        since = [domain for domain in later if domain and domain not in restore]
        self._history = history
        self._head = line[0]
        self._origins = [line[place if apart else last] for place in places]
        self.protect = protect or list(dict.fromkeys(since))
        names = list(dict.fromkeys(stage.name for stage in self._origins))
        self.since = f"stage{'s' if len(names) > 1 else ''} {', '.join(names)}"

    def load(self, device: str) -> tuple[models.Loaded, Delta, list[Delta] | None]:
        """Load HEAD, and what changed since."""
        with output.step(f"reading what changed since {self.since}"):
            deltas = {stage.id: self._history.delta(stage, self._head) for stage in self._origins}
        delta = deltas[self._farthest.id]
        apart = [deltas[stage.id] for stage in self._origins] if len(deltas) > 1 else None
        if not delta.changed:
            output.note(f"nothing to do: nothing changed since {self.since}")
            raise typer.Exit(NOTHING_TO_DO)
        with tempfile.TemporaryDirectory(prefix="rlforget-") as folder:
            head = Path(folder) / "head"
            with output.step(f"checking out {self._head.name}"):
                self._history.checkout(self._head, head)
            return models.load(str(head), device), delta, apart


def history_of(
    model: str | None, delta: Path | None, history: Path | None, base: Path | None, domains: list[str], hint: str
) -> History | None:
    """Tell from what was typed whether a history is meant, and open it.

    Args:
        model: What stands where a model or a history may.
        delta: What stands where a delta may.
        history: What `--history` says.
        base: What `--base` says.
        domains: The domains that the change is looked at from.
        hint: The option that names those.

    Returns:
        The history; None where a checkpoint is meant.

    Raises:
        HistoryError: There is none.
        typer.BadParameter: An option that does not go with what is meant, or lacks.
    """
    from rlforget.cli.history import opened
    from rlforget.history.index import is_history

    named = model is not None and is_history(Path(model))
    if model is None or named or history is not None:
        if model is not None and not named:
            raise misused("--history", found=f"{model} beside it, which is no history", fix="Give one of them.")
        if delta is not None:
            raise misused("DELTA", found="a history, which knows its own", fix="Leave it out.")
        if not domains:
            raise misused(hint, found="none", fix="Name the domain since whose stage the history is looked at.")
        return opened(history or (Path(model) if named and model else None), base)
    if base is not None:
        raise misused("--base", found="no history", fix="Leave it out, or name the history.")
    if delta is None:
        raise misused(
            "DELTA", found="none", fix="Name the delta file that led to the model; or give a history instead."
        )
    return None


def source_of(
    model: str | None,
    delta: Path | None,
    history: Path | None,
    base: Path | None,
    *,
    restore: list[str],
    protect: list[str],
    apart: bool,
    hint: str,
) -> Source:
    """Return what a command that writes no weights looks at; see `history_of`."""
    found = history_of(model, delta, history, base, restore, hint)
    if found is not None:
        return HistorySource(found, restore, protect, apart=apart)
    assert model is not None
    assert delta is not None
    return CheckpointSource(model, delta, protect)
