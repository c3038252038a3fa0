"""The rollbacks that a search tries: rule × budget × λ, and the controls beside them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rlforget.errors import ConfigError, UnknownNameError

BUDGETS = (0.01, 0.02, 0.05)

RULES: dict[str, tuple[float, ...]] = {
    "dense_twice": (1.0, 10.0),
    "dense": (1.0, 10.0),
    "kronecker": (0.3,),
    "subspace": (1.0,),
    "soft": (0.1, 1.0, 10.0),
    "two_fisher": (0.1, 10.0),
    "fisher": (),
}
"""The rules by preference, where several are as good as each other, each with the weights of the protected domains that
are tried: λ, or ε of `two_fisher`, where less spares more. The dense ones held up wherever they were measured."""

CONTROLS: dict[str, tuple[float, ...]] = {"magnitude": (), "random": (), "random_subspace": ()}
"""What a rule has to beat; a search never chooses one."""

WITHOUT_BUDGET = ("dense", "dense_twice", "kronecker", "soft", "random_subspace")
"""Those that correct every coordinate."""


@dataclass(frozen=True)
class Candidate:
    """One way to roll back.

    Attributes:
        rule: A name of `RULES` or `CONTROLS`.
        budget: Share of the model's coordinates that get old bits; None where the correction is dense.
        lam: Weight of the protected domains; None where the rule has none.
    """

    rule: str
    budget: float | None = None
    lam: float | None = None

    @property
    def control(self) -> bool:
        """Whether it is a control."""
        return self.rule in CONTROLS

    @property
    def label(self) -> str:
        """What it is, for people."""
        parts = [self.rule]
        if self.budget is not None:
            parts.append(f"{100 * self.budget:g}%")
        if self.lam is not None:
            parts.append(f"{'ε' if self.rule == 'two_fisher' else 'λ'} {self.lam:g}")
        return ", ".join(parts)


def candidates(
    rules: Sequence[str] | None = None, budgets: Sequence[float] = BUDGETS, lams: Sequence[float] | None = None
) -> list[Candidate]:
    """Return every combination, the preferred rules first, and then the controls at the same budgets.

    Args:
        rules: Names of `RULES`; None: all.
        budgets: Shares of all coordinates, in (0, 1], for rules that put old bits back.
        lams: For rules that weigh the protected domains; None: each rule's own.

    Raises:
        ConfigError: A budget or λ out of range, or nothing to try.
        UnknownNameError: There is no such rule.
    """
    wanted = tuple(RULES) if rules is None else tuple(rules)
    for rule in wanted:
        if rule not in RULES:
            raise UnknownNameError(
                f"rule {rule!r}", expected=f"one of {', '.join(RULES)}", found=repr(rule), fix="Check the spelling."
            )
    for name, given, holds, expected in (
        ("rules", wanted, True, "one rule or more"),
        ("budgets", budgets, all(0 < budget <= 1 for budget in budgets), "shares in (0, 1]"),
        ("lams", lams, lams is None or all(lam > 0 for lam in lams), "positive numbers"),
    ):
        if not holds or (given is not None and len(given) == 0):
            raise ConfigError(name, expected=expected, found=str(given), fix=f"Give another {name}=.")
    found: list[Candidate] = []
    for rule, own in (RULES | CONTROLS).items():
        if rule in wanted or rule in CONTROLS:
            found += _of_rule(rule, budgets, own if lams is None or not own else tuple(lams))
    return found


def _of_rule(rule: str, budgets: Sequence[float], lams: Sequence[float]) -> Iterator[Candidate]:
    for budget in (None,) if rule in WITHOUT_BUDGET else tuple(budgets):
        for lam in lams or (None,):
            yield Candidate(rule, budget, lam)
