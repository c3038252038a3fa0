"""The numbers of a rule that a command line may change: λ, μ, and the rows that gradients are taken of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import typer

from rlforget.cli.options import misused

Rows = Literal["sequence", "token", "logit"]

_TAKES = {
    "dense": ("lam", "mu", "rows", "row_budget"),
    "dense_twice": ("lam", "mu", "rows", "row_budget"),
    "subspace": ("lam", "mu", "rows", "row_budget"),
    "kronecker": ("lam",),
    "soft": ("lam",),
}
"""What each rule takes of them; the others take none."""

PARTS = {"subspace": ("rows", "row_budget"), "kronecker": ("lam",)}
"""What each part of `conflict` takes; the others take none."""

_OPTIONS = {"lam": "--lam", "mu": "--mu", "rows": "--rows", "row_budget": "--row-budget"}


def _number_or_auto(text: str) -> float | Literal["auto"]:
    if text == "auto":
        return "auto"
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"found {text!r}. Write a number, e.g. 1e-4, or auto.") from None


Lam = Annotated[
    Any,
    typer.Option(
        "--lam",
        help="λ, the weight of the domains to spare; for a subspace also `auto`, chosen on held-out rows.",
        parser=_number_or_auto,
        metavar="NUMBER|auto",
        show_default="the rule's own",
    ),
]
Mu = Annotated[
    Any,
    typer.Option(
        "--mu",
        help="μ, the ridge of a subspace, in units of its rows' mean squared norm; or `auto`.",
        parser=_number_or_auto,
        metavar="NUMBER|auto",
        show_default="1e-4",
    ),
]
RowKind = Annotated[
    Rows | None,
    typer.Option("--rows", help="A subspace's rows: one a completion, a token, or a likely token at each place."),
]
RowBudget = Annotated[
    int | None,
    typer.Option("--row-budget", help="Rows a domain at most.", metavar="N", min=1, show_default="all"),
]


@dataclass(frozen=True)
class Tuning:
    """What was asked for; None is the rule's own choice."""

    lam: float | Literal["auto"] | None = None
    mu: float | Literal["auto"] | None = None
    rows: Rows | None = None
    row_budget: int | None = None

    def given(self) -> dict[str, Any]:
        """Return what was asked for, by the names that the library gives them."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def of(self, rule: str) -> dict[str, Any]:
        """Return what was asked for that a rule takes, by the names that the library gives them."""
        return {name: value for name, value in self.given().items() if name in _TAKES.get(rule, ())}

    def of_part(self, part: str) -> dict[str, Any]:
        """Return what was asked for that a part of `conflict` takes."""
        return {name: value for name, value in self.given().items() if name in PARTS.get(part, ())}

    def check(self, rule: str, parts: Sequence[str] = ()) -> None:
        """Hold that a rule takes what was asked for, or one of the parts of `conflict` that are measured beside it.

        Raises:
            typer.BadParameter: Neither does.
        """
        for name, value in self.given().items():
            takers = [one for one, taken in _TAKES.items() if name in taken]
            if rule not in takers and not any(name in PARTS.get(part, ()) for part in parts):
                fix = f"Leave it out, or take {', '.join(takers)}."
                raise misused(_OPTIONS[name], found=f"the rule {rule!r}, which has none", fix=fix)
            if value == "auto" and (rule in ("kronecker", "soft") or "kronecker" in parts):
                raise misused(_OPTIONS[name], found="auto, for a Kronecker or soft rule", fix="Give a number.")

    def refuse(self, *, found: str, fix: str) -> None:
        """Hold that nothing was asked for.

        Raises:
            typer.BadParameter: Something was.
        """
        for name in self.given():
            raise misused(_OPTIONS[name], found=found, fix=fix)
