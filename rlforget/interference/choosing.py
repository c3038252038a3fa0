"""μ and λ chosen on held-out rows, all of it in the sample space: no gradient is taken for it.

The rows are split into folds by prompt. A correction fitted on the others is asked what it does to the rows of a fold:
K_fold,fit y with K = W Wᵀ. What is to be small is the share of the damage that it leaves plus the share of the later
change that it takes away, as squares: ‖G_A(δ − u)‖²/‖G_A δ‖² + ‖G_B u‖²/‖G_B δ‖². Ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlforget.errors import ConfigError

MU_GRID = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
LAM_GRID = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
FOLDS = 4


@dataclass(frozen=True)
class Problem:
    """The solution in the sample space, before μ and λ are known.

    Attributes:
        product: [G_A; G_B] [G_A; G_B]ᵀ, float64 [n, n].
        target: G_A δ, float64 [restoring].
        gone: G_B δ, float64 [n − restoring], or None where nothing needs it.
        fold: For each row its prompt's number in its domain, int64 [n].
    """

    product: Tensor
    target: Tensor
    gone: Tensor | None
    fold: Tensor

    @property
    def restoring(self) -> int:
        """How many rows G_A has."""
        return self.target.numel()


def ridge_of(product: Tensor, restoring: int, mu: float) -> float:
    """Return μ in absolute terms: it comes in units of the mean squared norm of G_A's rows."""
    return max(mu * float(product.diagonal()[:restoring].mean()), torch.finfo(torch.float64).tiny)


def solve(product: Tensor, target: Tensor, *, mu: float, lam: float) -> tuple[Tensor, Tensor]:
    """Solve (W Wᵀ + μI) y = [G_A δ; 0] for W = [G_A; √λ G_B].

    Returns:
        x, float64 [n], with u = [G_A; G_B]ᵀ x; and [G_A u; G_B u].
    """
    restoring = target.numel()
    root = torch.ones_like(product[0])
    root[restoring:] = lam**0.5
    weighted = product * root * root.unsqueeze(1)
    right = torch.zeros_like(root)
    right[:restoring] = target
    identity = torch.eye(root.numel(), dtype=product.dtype, device=product.device)
    x = torch.linalg.solve(weighted + ridge_of(product, restoring, mu) * identity, right) * root
    return x, product @ x


def choose(
    problem: Problem, mu: float | str, lam: float | str, *, mus: Sequence[float] = MU_GRID,
    lams: Sequence[float] = LAM_GRID
) -> tuple[float, float]:  # fmt: skip
    """Return μ and λ, those that are "auto" chosen on held-out rows: μ at λ = 1 or as given, then λ.

    Raises:
        ConfigError: There are fewer than two prompts to split.
    """
    if isinstance(mu, str):
        at = 1.0 if isinstance(lam, str) else lam
        mu = min(mus, key=lambda value: held_out(problem, value, at))
    if isinstance(lam, str):
        fixed = mu
        lam = min(lams, key=lambda value: held_out(problem, fixed, value)) if problem.gone is not None else 1.0
    return mu, lam


def held_out(problem: Problem, mu: float, lam: float) -> float:
    """Return the mean over folds of the two shares, as squares: 1 where nothing is corrected."""
    folds = min(FOLDS, int(problem.fold.max()) + 1)
    if folds < 2:
        raise ConfigError(
            "mu",
            expected="two prompts a domain or more, to choose it on those held out",
            found="one",
            fix="Give more prompts, or numbers for mu= and lam=.",
        )
    row = torch.arange(problem.fold.numel(), device=problem.fold.device)
    damaged = row < problem.restoring
    damage, side_effect = 0.0, 0.0
    for number in range(folds):
        out = problem.fold % folds == number
        fit = (~out).nonzero().flatten()
        fitted = fit[damaged[fit]]
        if not fitted.numel():
            continue
        x, _ = solve(problem.product[fit][:, fit], problem.target[fitted], mu=mu, lam=lam)
        for_a, for_b = (out & damaged).nonzero().flatten(), (out & ~damaged).nonzero().flatten()
        left = problem.target[for_a] - problem.product[for_a][:, fit] @ x
        damage += float(left.square().sum())
        side_effect += float((problem.product[for_b][:, fit] @ x).square().sum())
    share = damage / max(float(problem.target.square().sum()), torch.finfo(torch.float64).tiny)
    if problem.gone is None:
        return share
    return share + side_effect / max(float(problem.gone.square().sum()), torch.finfo(torch.float64).tiny)
