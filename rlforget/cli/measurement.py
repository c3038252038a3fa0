"""How `conflict` and `rollback` measure which changes hurt: their common options, checked, and put to work."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from rlforget.cli import models, output
from rlforget.cli.options import misused
from rlforget.cli.tuning import Tuning

if TYPE_CHECKING:
    from rlforget.delta import Delta
    from rlforget.delta.file import DeltaFile
    from rlforget.domains import Domain
    from rlforget.interference import Conflict, ConflictSubspace, Fisher
    from rlforget.recovery.in_place import What

Point = Literal["now", "midpoint", "earlier"]
Where = Annotated[
    Point | None,
    typer.Option(
        help="Point on the way from before to after where Fishers are taken.",
        show_default="midpoint; for the rule `taylor` earlier",
    ),
]
Own = Annotated[
    Path | None,
    typer.Option(help="The delta of the restored domain's own training, for the rule `opposed`.", metavar="DELTA"),
]

FRACTION = 0.02
CORRECTIONS = {
    "dense": ("subspace",),
    "dense_twice": ("subspace",),
    "kronecker": ("subspace",),
    "soft": ("earlier", "later"),
}
"""The rules that correct every coordinate, and what each is measured from; a score puts back old bits instead."""

SEVERAL_STAGES = ("dense", "dense_twice")
"""The rules that restore each domain from a stage of its own."""

NOTHING_TO_DO = 3


class Measurement:
    """How conflicts are measured: the options that `conflict` and `rollback` share.

    Raises:
        UnknownNameError: There is no such rule or domain.
        typer.BadParameter: The rule needs an option that was not given, or does not take one that was.

    Args:
        rule: A score that old bits are chosen by, or with `corrections` any rule of a rollback.
        restore: The domains that lost.
        protect: The domains to spare.
        own: The first of these domains' own delta.
        where: Where Fishers are taken; by default half-way, and for `taylor`, whose formula is so, at the earlier end.
        samples: Completions a domain.
        seed: Seed of all draws.
        tuning: The rule's numbers, where they are not its own.
        corrections: Whether the rules that correct every coordinate are known.
    """

    def __init__(
        self,
        rule: str,
        restore: Sequence[str],
        protect: Sequence[str],
        own: Path | None,
        *,
        where: Point | None,
        samples: int,
        seed: int,
        tuning: Tuning,
        corrections: bool = False,
    ) -> None:
        from rlforget import domains
        from rlforget.delta.file import DeltaFile
        from rlforget.errors import UnknownNameError
        from rlforget.interference.scores import NEEDS

        known: dict[str, tuple[str, ...]] = CORRECTIONS | NEEDS if corrections else NEEDS
        if rule not in known:
            raise UnknownNameError(
                f"rule {rule!r}", expected=f"one of {', '.join(known)}", found=repr(rule), fix="Check the spelling."
            )
        needs = known[rule]
        if corrections and where is not None and not {"earlier", "later"} & set(needs):
            found = f"the rule {rule!r}, which takes no Fisher"
            raise misused("--where", found=found, fix="Leave it out, or take the rule fisher.")
        if corrections and own is not None and "own" not in needs:
            found = f"the rule {rule!r}, which does not look at it"
            raise misused("--own", found=found, fix="Leave it out, or take the rule opposed.")
        for option, needed, given in (
            ("--restore", "earlier" in needs or "subspace" in needs, restore),
            ("--protect", "later" in needs, protect),
            ("--own", "own" in needs, own),
        ):
            if needed and not given:
                raise misused(option, found="none", fix=f"Give it: the rule {rule!r} needs it.")
        self.rule, self.samples, self.seed, self.tuning = rule, samples, seed, tuning
        self.where: Point = where or ("earlier" if rule == "taylor" else "midpoint")
        self.restore = [domains.get(name) for name in restore]
        self.protect = [domains.get(name) for name in protect]
        self._own = None if own is None else DeltaFile(own)

    @property
    def has_own(self) -> bool:
        """Whether the earlier domain's own delta was given."""
        return self._own is not None

    def own_delta(self, loaded: models.Loaded, later: Delta) -> Delta | None:
        """Read the earlier domain's own delta, where it was given."""
        return None if self._own is None else _read_own(self._own, loaded.model, later)

    def what(
        self, loaded: models.Loaded, delta: Delta, budget: float | None, *, since: Sequence[Delta] | None = None
    ) -> What:
        """Measure what a rollback by this rule is to undo.

        Args:
            loaded: The model, at the delta's after bits.
            delta: The later change.
            budget: Share of all coordinates that get old bits, for a score; None: `FRACTION`.
            since: For each domain that lost the change since its own stage, for a rule of `SEVERAL_STAGES`.
        """
        from rlforget.interference import kronecker_rule, soft_rule

        if self.rule == "soft":
            earlier, later = self._fishers(loaded, delta, self.restore), self._fishers(loaded, delta, self.protect)
            return soft_rule(delta, earlier=earlier, later=later, **self.tuning.of("soft"))
        if self.rule == "kronecker":
            with output.step(f"measuring the second moments of every layer, {self.samples} completions a domain"):
                given = self.tuning.of("kronecker") | self._draws(loaded)
                return kronecker_rule(loaded.model, delta, self.restore, self.protect, **given)
        if self.rule in CORRECTIONS:
            return self.subspace(loaded, delta, passes=2 if self.rule == "dense_twice" else 1, since=since)
        return self.conflict(loaded, delta).top(FRACTION if budget is None else budget)

    def subspace(
        self, loaded: models.Loaded, delta: Delta, *, passes: int = 1, since: Sequence[Delta] | None = None
    ) -> ConflictSubspace:
        """Solve the conflict subspace."""
        from rlforget.interference import conflict_subspace

        with output.step(f"solving the conflict subspace, {self.samples} completions a domain"):
            return conflict_subspace(
                loaded.model,
                delta,
                self.restore,
                self.protect,
                since=since,
                passes=passes,
                **self.tuning.of("subspace"),
                **self._draws(loaded),
            )

    def conflict(self, loaded: models.Loaded, delta: Delta) -> Conflict:
        """Score every changed coordinate."""
        from rlforget.interference import conflict
        from rlforget.interference.scores import NEEDS

        needs = NEEDS[self.rule]
        return conflict(
            delta,
            score=self.rule,
            earlier=self._fishers(loaded, delta, self.restore) if "earlier" in needs else None,
            later=self._fishers(loaded, delta, self.protect) if "later" in needs else None,
            own=self.own_delta(loaded, delta),
            subspace=self.subspace(loaded, delta) if "subspace" in needs else None,
            seed=self.seed,
        )

    def _fishers(self, loaded: models.Loaded, delta: Delta, domains: Sequence[Domain]) -> list[Fisher]:
        from rlforget.interference import fisher

        found: list[Fisher] = []
        for domain in domains:
            with output.step(f"measuring the Fisher of {domain.name}, {self.samples} completions"):
                found.append(fisher(loaded.model, domain, delta, where=self.where, **self._draws(loaded)))
        return found

    def _draws(self, loaded: models.Loaded) -> dict[str, Any]:
        return {"samples": self.samples, "seed": self.seed, "tokenizer": loaded.tokenizer}


def load_changes(path: Path, model: str) -> Delta:
    """Load a delta whose after side is `model`, or end the command where it holds no change."""
    from rlforget.delta import Delta as File

    with output.step(f"reading {path}"):
        delta = File.load(path, base=models.folder_of(model))
    if not delta.changed:
        output.note(f"nothing to do: {path} changes no coordinate")
        raise typer.Exit(NOTHING_TO_DO)
    return delta


def load_fitting(model: str, delta: Delta, device: str) -> models.Loaded:
    """Hold that the delta leads to the model's weights, and load it."""
    from rlforget.interference.point import check_at_after
    from rlforget.weights import open_weights

    with output.step(f"comparing {model} with the delta"):
        check_at_after(open_weights(models.folder_of(model)), delta)
    return models.load(model, device)


def _read_own(file: DeltaFile, model: Any, later: Delta) -> Delta:
    """Read the earlier domain's own delta, which ends where the later one begins, or at the model itself."""
    from rlforget.delta.composed import ComposedWeights
    from rlforget.delta.layers import MemoryLayer
    from rlforget.errors import WrongBaseError
    from rlforget.weights import open_weights

    now = open_weights(model)
    try:
        return file.read(ComposedWeights(now, [MemoryLayer(later.invert())]))
    except WrongBaseError:
        return file.read(now)
