"""Where a rollback's result goes: a new checkpoint, the checkpoint itself, or a history."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rlforget.cli import models, output
from rlforget.cli.change_source import ROLLED_BACK, CheckpointSource, HistorySource, Source, history_of
from rlforget.cli.options import misused

if TYPE_CHECKING:
    from rlforget.delta import Delta
    from rlforget.delta.file import DeltaFile
    from rlforget.history import History, Stage
    from rlforget.recovery.on_disk import Control
    from rlforget.recovery.undo import RollbackReport

_WAIT = 60.0


class Place(Source, Protocol):
    """What a rollback works on, and where its result is kept."""

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


class CheckpointPlace(CheckpointSource):
    """A checkpoint folder and the delta file that leads to it; the result goes to another folder, or in place."""

    def __init__(self, model: str, delta: Path, out: Path | None, protect: list[str], *, force: bool) -> None:
        from rlforget.weights.atomic import check_new_folder

        if out is not None:
            check_new_folder(out, force=force)
        elif model == "miniature":
            raise misused("--in-place", found="the shipped miniature, which stays as it is", fix="Give --out.")
        super().__init__(model, delta, protect)
        self._out, self._force = out, force

    def streams(self) -> DeltaFile | None:
        """Return the delta's file, if old bits can be put back without loading it: some did, none as a whole."""
        from rlforget.delta.file import DeltaFile

        file = DeltaFile(self._delta)
        return file if file.changed and not file.whole and not file.renamed else None

    def put_back(
        self, delta: DeltaFile, score: Control, fraction: float, *, seed: int, dry_run: bool
    ) -> tuple[RollbackReport, dict[str, Any]]:
        """Put old bits back range by range, at the coordinates that a control scores highest."""
        from rlforget.recovery.on_disk import rollback_on_disk

        self._folder = models.folder_of(self._model)
        how: dict[str, Any] = {"score": score, "fraction": fraction, "seed": seed, "dry_run": dry_run}
        with output.bar(f"writing {self._folder if self._out is None else self._out}") as progress:
            report = rollback_on_disk(
                self._folder,
                delta,
                self._out,
                in_place=self._out is None,
                force=self._force,
                progress=progress,
                **how,
            )
        return report, self._kept(dry_run)

    def load(self, device: str) -> tuple[models.Loaded, Delta, list[Delta] | None]:
        """Load the delta and the model, which has to be at its after bits."""
        loaded, changes, since = super().load(device)
        self._folder = loaded.folder
        self._held = None if self._out is not None else _fingerprints(loaded)
        return loaded, changes, since

    def save(self, loaded: models.Loaded, done: Mapping[str, Any], *, dry_run: bool) -> dict[str, Any]:
        """Write the model as a new checkpoint, or into the one that it came from and that must still be as it was."""
        if dry_run:
            pass
        elif self._out is not None:
            with output.step(f"writing {self._out}"):
                models.save(loaded.model, loaded.tokenizer, self._out, like=loaded.folder, force=self._force)
        else:
            from rlforget.delta.in_place import write_difference
            from rlforget.weights import open_weights
            from rlforget.weights.checkpoint import CheckpointWeights

            with output.bar(f"writing {loaded.folder}") as progress:
                live, note = open_weights(loaded.model), f"rollback of {self._delta}"
                checkpoint = CheckpointWeights(loaded.folder)
                write_difference(checkpoint, live, held=self._held, note=note, progress=progress)
        return self._kept(dry_run)

    def _kept(self, dry_run: bool) -> dict[str, Any]:
        return {"out": None if dry_run else self._out, "in_place": self._out is None and not dry_run}

    def show(self, kept: Mapping[str, Any], *, dry_run: bool) -> None:
        """Say where it lies."""
        output.written(self._folder if self._out is None else self._out, dry_run=dry_run)


class HistoryPlace(HistorySource):
    """A history: what changed between the stage of the domains to restore and HEAD; the result is a new stage."""

    def __init__(self, history: History, restore: list[str], protect: list[str], *, apart: bool) -> None:
        super().__init__(history, restore, protect, apart=apart)
        self._restore = restore

    def save(self, loaded: models.Loaded, done: Mapping[str, Any], *, dry_run: bool) -> dict[str, Any]:
        """Commit the model on what it came from."""
        if dry_run:
            return {"stage": None, "parent": self._head.name}
        with output.step(f"committing on {self._head.name}"):
            stage: Stage = self._history.commit(
                loaded.model,
                domain=self._restore[0],
                message=done["message"],
                parent=self._head,
                config={**done["config"], ROLLED_BACK: [stage.name for stage in self._origins]},
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
        BadParameter: An option that does not go with it, or lacks.
    """
    from rlforget.cli.options import out_or_in_place

    found = history_of(model, delta, history, base, restore, "--restore")
    if found is not None:
        for given, option in ((out is not None, "--out"), (in_place, "--in-place")):
            if given:
                raise misused(
                    option,
                    found="a history, which gets a new stage",
                    fix="Leave it out; `rlforget checkout` writes a stage.",
                )
        return HistoryPlace(found, restore, protect, apart=apart)
    out_or_in_place(out, in_place)
    assert model is not None
    assert delta is not None
    return CheckpointPlace(model, delta, out, protect, force=force)


def _fingerprints(loaded: models.Loaded) -> dict[str, tuple[int, int]]:
    """Return what the model is before anything is done to it."""
    from rlforget.weights import open_weights
    from rlforget.weights.digest import all_lanes

    live = open_weights(loaded.model)
    return all_lanes(live, live.names())
