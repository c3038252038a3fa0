"""The numbers of a rule that a command line may change: λ, μ, and the rows that gradients are taken of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import typer

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
        raise typer.BadParameter(f"{text!r} is neither a number nor auto: write e.g. 1e-4") from None


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
                said = f"the rule {rule!r} has none: leave it out, or take {', '.join(takers)}"
                raise typer.BadParameter(said, param_hint=_OPTIONS[name])
            if value == "auto" and (rule in ("kronecker", "soft") or "kronecker" in parts):
                raise typer.BadParameter("a Kronecker or soft rule takes a number", param_hint=_OPTIONS[name])

    def refuse(self, why: str) -> None:
        """Hold that nothing was asked for.

        Raises:
            typer.BadParameter: Something was.
        """
        for name in self.given():
            raise typer.BadParameter(why, param_hint=_OPTIONS[name])
