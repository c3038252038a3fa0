"""How `conflict` and `rollback` measure which changes hurt: their common options, checked, and put to work."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from rlforget.cli import models, output

if TYPE_CHECKING:
    from rlforget.delta import Delta
    from rlforget.delta.file import DeltaFile
    from rlforget.domains import Domain
    from rlforget.interference import Conflict, ConflictSubspace

Point = Literal["now", "midpoint", "earlier"]
Score = Annotated[
    str,
    typer.Option(
        help="How to score a change: subspace, fisher, two_fisher, taylor, opposed, or the controls magnitude, random."
    ),
]
Where = Annotated[
    Point,
    typer.Option(help="Point on the way from before to after where an earlier domain's Fisher is taken."),
]
Own = Annotated[
    Path | None, typer.Option(help="The earlier domain's own delta, for the score `opposed`.", metavar="DELTA")
]

FRACTION = 0.02
NOTHING_TO_DO = 3


class Measurement:
    """How conflicts are measured: the options that `conflict` and `rollback` share.

    Raises:
        UnknownNameError: There is no such score or domain.
        typer.BadParameter: The score needs an option that was not given.
    """

    def __init__(
        self,
        score: str,
        earlier: Sequence[str],
        later: Sequence[str],
        own: Path | None,
        *,
        names: tuple[str, str],
        where: Point,
        samples: int,
        seed: int,
    ) -> None:
        from rlforget import domains
        from rlforget.delta.file import DeltaFile
        from rlforget.errors import UnknownNameError
        from rlforget.interference.scores import NEEDS

        if score not in NEEDS:
            raise UnknownNameError(
                f"score {score!r}", expected=f"one of {', '.join(NEEDS)}", found=repr(score), fix="Check the spelling."
            )
        needs = NEEDS[score]
        for option, needed, given in (
            (names[0], "earlier" in needs or "subspace" in needs, earlier),
            (names[1], "later" in needs, later),
            ("--own", "own" in needs, own),
        ):
            if needed and not given:
                raise typer.BadParameter(f"the score {score!r} needs it", param_hint=option)
        self.score, self.where, self.samples, self.seed = score, where, samples, seed
        self.earlier = [domains.get(name) for name in earlier]
        self.later = [domains.get(name) for name in later]
        self._own = None if own is None else DeltaFile(own)

    def subspace(self, loaded: models.Loaded, delta: Delta) -> ConflictSubspace:
        """Solve the conflict subspace."""
        from rlforget.interference import conflict_subspace

        with output.step(f"solving the conflict subspace, {self.samples} completions a domain"):
            return conflict_subspace(
                loaded.model,
                delta,
                self.earlier,
                self.later,
                samples=self.samples,
                seed=self.seed,
                tokenizer=loaded.tokenizer,
            )

    def conflict(self, loaded: models.Loaded, delta: Delta) -> Conflict:
        """Score every changed coordinate."""
        from rlforget.interference import Fisher, conflict
        from rlforget.interference import fisher as measure
        from rlforget.interference.scores import NEEDS

        def fisher(domain: Domain, where: Point) -> Fisher:
            with output.step(f"measuring the Fisher of {domain.name}, {self.samples} completions"):
                return measure(
                    loaded.model,
                    domain,
                    delta,
                    samples=self.samples,
                    seed=self.seed,
                    tokenizer=loaded.tokenizer,
                    where=where,
                )

        needs = NEEDS[self.score]
        return conflict(
            delta,
            score=self.score,
            earlier=[fisher(domain, self.where) for domain in self.earlier] if "earlier" in needs else None,
            later=[fisher(domain, "now") for domain in self.later] if "later" in needs else None,
            own=None if self._own is None else _read_own(self._own, loaded, delta),
            subspace=self.subspace(loaded, delta) if "subspace" in needs else None,
            seed=self.seed,
        )


def load_changes(path: Path, model: str) -> Delta:
    """Load a delta whose after side is `model`, or end the command where it holds no change."""
    from rlforget.delta import Delta as File

    delta = File.load(path, base=models.folder_of(model))
    if not delta.changed:
        output.note(f"nothing to do: {path} changes no coordinate")
        raise typer.Exit(NOTHING_TO_DO)
    return delta


def load_fitting(model: str, delta: Delta, device: str) -> models.Loaded:
    """Hold that the delta leads to the model's weights, and load it."""
    from rlforget.interference.point import check_at_after
    from rlforget.weights import open_weights

    check_at_after(open_weights(models.folder_of(model)), delta)
    return models.load(model, device)


def _read_own(file: DeltaFile, loaded: models.Loaded, later: Delta) -> Delta:
    """Read the earlier domain's own delta, which ends where the later one begins, or at the model itself."""
    from rlforget.delta.composed import ComposedWeights
    from rlforget.delta.layers import MemoryLayer
    from rlforget.errors import WrongBaseError
    from rlforget.weights import open_weights

    now = open_weights(loaded.folder)
    try:
        return file.read(ComposedWeights(now, [MemoryLayer(later.invert())]))
    except WrongBaseError:
        return file.read(now)
