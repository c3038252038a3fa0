"""Where a rollback's model comes from, and where the result goes: a checkpoint and a delta, or a history."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import typer

from rlforget.cli import models, output
from rlforget.cli.measurement import NOTHING_TO_DO, load_changes, load_fitting

if TYPE_CHECKING:
    from rlforget.delta import Delta
    from rlforget.history import History, Stage

_WAIT = 60.0
_ROLLED_BACK = "rolled_back_since"  # in the configuration of the stage that a rollback makes


class Place(Protocol):
    """What a rollback works on.

    Attributes:
        protect: The domains to spare, by name.
        since: What the change that is rolled back began with, for people.
    """

    protect: list[str]
    since: str

    def load(self, device: str) -> tuple[models.Loaded, Delta, list[Delta] | None]:
        """Load the model and the later change that leads to it, or end the command where nothing changed.

        Returns:
            The model; the change; and where domains are restored from stages of their own, the change since each.
        """

    def save(self, loaded: models.Loaded, done: Mapping[str, Any], *, dry_run: bool) -> dict[str, Any]:
        """Keep the model as it was rolled back.

        Args:
            loaded: The model.
            done: What was done: `message` for people; `config` and `metrics` for programs.
            dry_run: Keep nothing.

        Returns:
            Where it is, for programs.
        """

    def show(self, kept: Mapping[str, Any], *, dry_run: bool) -> None:
        """Say in one line where the model is, or would be."""


class CheckpointPlace:
    """A checkpoint folder and the delta file that leads to it; the result goes to another folder, or in place."""

    def __init__(self, model: str, delta: Path, out: Path | None, protect: list[str], *, force: bool) -> None:
        from rlforget.weights.atomic import check_new_folder

        if out is not None:
            check_new_folder(out, force=force)
        elif model == "miniature":
            raise typer.BadParameter("the shipped miniature is not changed in place", param_hint="--in-place")
        self._model, self._delta, self._out, self._force = model, delta, out, force
        self.protect, self.since = protect, f"the beginning of {delta.name}"

    def load(self, device: str) -> tuple[models.Loaded, Delta, list[Delta] | None]:
        """Load the delta and the model, which has to be at its after bits."""
        changes = load_changes(self._delta, self._model)
        loaded = load_fitting(self._model, changes, device)
        self._folder = loaded.folder
        self._held = None if self._out is not None else _fingerprints(loaded)
        return loaded, changes, None

    def save(self, loaded: models.Loaded, done: Mapping[str, Any], *, dry_run: bool) -> dict[str, Any]:
        """Write the model as a new checkpoint, or into the one that it came from and that must still be as it was."""
        if dry_run:
            pass
        elif self._out is not None:
            models.save(loaded.model, loaded.tokenizer, self._out, like=loaded.folder, force=self._force)
        else:
            from rlforget.delta.in_place import write_difference
            from rlforget.weights import open_weights
            from rlforget.weights.checkpoint import CheckpointWeights

            with output.bar(f"writing {loaded.folder}") as progress:
                live, note = open_weights(loaded.model), f"rollback of {self._delta}"
                checkpoint = CheckpointWeights(loaded.folder)
                write_difference(checkpoint, live, held=self._held, note=note, progress=progress)
        return {"out": None if dry_run else self._out, "in_place": self._out is None and not dry_run}

    def show(self, kept: Mapping[str, Any], *, dry_run: bool) -> None:
        """Say where it lies."""
        output.written(self._folder if self._out is None else self._out, dry_run=dry_run)


class HistoryPlace:
    """A history: what changed between the stage of the domains to restore and HEAD; the result is a new stage.

    Args:
        history: The history.
        restore: The domains to restore, as they were committed.
        protect: The domains to spare; none: those committed since.
        apart: Whether each domain is restored from its own last stage. Else all are from the last stage of any of them.
    """

    def __init__(self, history: History, restore: list[str], protect: list[str], *, apart: bool) -> None:
        from rlforget.errors import HistoryError
        from rlforget.history.stage import lineage

        index = history.index
        line = list(lineage(index.by_id, index.head))
        # A rollback is no stage that a skill was learnt in: the next one goes back to where it was.
        trained = [None if _ROLLED_BACK in stage.config else stage.domain for stage in line]
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
        self._history, self._restore = history, restore
        self._head = line[0]
        self._origins = [line[place if apart else last] for place in places]
        self.protect = protect or list(dict.fromkeys(since))
        names = list(dict.fromkeys(stage.name for stage in self._origins))
        self.since = f"stage{'s' if len(names) > 1 else ''} {', '.join(names)}"

    def load(self, device: str) -> tuple[models.Loaded, Delta, list[Delta] | None]:
        """Load HEAD, and what changed since."""
        deltas = {stage.id: self._history.delta(stage, self._head) for stage in self._origins}
        delta = deltas[self._farthest.id]
        apart = [deltas[stage.id] for stage in self._origins] if len(deltas) > 1 else None
        if not delta.changed:
            output.note(f"nothing to do: nothing changed since {self.since}")
            raise typer.Exit(NOTHING_TO_DO)
        with tempfile.TemporaryDirectory(prefix="rlforget-") as folder:
            head = Path(folder) / "head"
            self._history.checkout(self._head, head)
            return models.load(str(head), device), delta, apart

    def save(self, loaded: models.Loaded, done: Mapping[str, Any], *, dry_run: bool) -> dict[str, Any]:
        """Commit the model on what it came from."""
        if dry_run:
            return {"stage": None, "parent": self._head.name}
        stage: Stage = self._history.commit(
            loaded.model,
            domain=self._restore[0],
            message=done["message"],
            parent=self._head,
            config={**done["config"], _ROLLED_BACK: [stage.name for stage in self._origins]},
            metrics=done["metrics"],
            wait=_WAIT,
        )
        return {"stage": stage.name, "id": stage.id, "parent": self._head.name}

    def show(self, kept: Mapping[str, Any], *, dry_run: bool) -> None:
        """Say which stage it is."""
        verb, name = ("would commit", "a stage") if dry_run else ("committed stage", kept["stage"])
        output.line(f"{verb} {name} on {self._head.name}")


def place_of(
    model: str | None,
    delta: Path | None,
    history: Path | None,
    base: Path | None,
    *,
    out: Path | None,
    in_place: bool,
    restore: list[str],
    protect: list[str],
    apart: bool,
    force: bool,
) -> Place:
    """Tell from what was typed whether a history or a checkpoint is meant, and check that the rest fits to it.

    Raises:
        HistoryError: There is no history, or no stage of a domain to restore in it.
        typer.BadParameter: An option that does not go with it, or lacks.
    """
    from rlforget.cli.history import opened
    from rlforget.cli.options import out_or_in_place
    from rlforget.history.index import is_history

    named = model is not None and is_history(Path(model))
    if model is None or named or history is not None:
        if model is not None and not named:
            raise typer.BadParameter("give a history or a model", param_hint="--history")
        for given, option in ((delta is not None, "DELTA"), (out is not None, "--out"), (in_place, "--in-place")):
            if given:
                raise typer.BadParameter("a history gets a new stage; see checkout", param_hint=option)
        if not restore:
            raise typer.BadParameter("a history is rolled back toward a domain", param_hint="--restore")
        where = opened(history or (Path(model) if named and model else None), base)
        return HistoryPlace(where, restore, protect, apart=apart)
    if base is not None:
        raise typer.BadParameter("it goes with a history", param_hint="--base")
    if delta is None:
        raise typer.BadParameter("a model is rolled back along a delta; or name a history", param_hint="DELTA")
    out_or_in_place(out, in_place)
    return CheckpointPlace(model, delta, out, protect, force=force)


def _fingerprints(loaded: models.Loaded) -> dict[str, tuple[int, int]]:
    """Return what the model is before anything is done to it."""
    from rlforget.weights import open_weights
    from rlforget.weights.digest import lanes_of

    live = open_weights(loaded.model)
    return {name: lanes_of(live, name) for name in live.names()}
