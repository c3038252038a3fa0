"""The soft rule: at every coordinate, the share of the change to undo that weighs the earlier domains' loss against
the later ones'."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rlforget.delta.sharded import check_whole
from rlforget.errors import ConfigError
from rlforget.interference.combining import Fishers, combine_fishers, fisher_of
from rlforget.interference.empirical_fisher import Fisher

if TYPE_CHECKING:
    from rlforget.delta import Delta


@dataclass(frozen=True)
class SoftRule:
    """How much of its change each coordinate is to give back.

    Attributes:
        shares: For each changed tensor, float32 [changed] in [0, 1], in the order of the delta's indices.
        lam: The weight λ of the later domains.
    """

    shares: dict[str, Tensor]
    lam: float

    def __repr__(self) -> str:
        touched = sum(int(torch.count_nonzero(share)) for share in self.shares.values())
        return f"SoftRule(lam={self.lam:g}, {touched} coordinates in {len(self.shares)} tensors)"


def soft_rule(delta: Delta, *, earlier: Fishers, later: Fishers, lam: float = 1.0) -> SoftRule:
    """Find the share s = F_A / (F_A + λ F_B) of its change that each coordinate is to give back.

    The correction u = s δ minimises ½ F_A (δ − u)² + ½ λ F_B u²: the loss of the earlier domains that stays, and the
    one that undoing costs the later domains, both with diagonal curvature. The rule is this project's own.

    Args:
        delta: The later change, from the earlier domains' stage to now.
        earlier: The Fisher of the domain to restore, taken at `delta`; or one a domain.
        later: Likewise for the domains to spare. With several on either side each Fisher is first divided by its mean,
            on both sides; `combine_fishers` gives them weights.
        lam: λ, not negative; the larger, the less is undone.

    Returns:
        The shares, for `rf.rollback`; 0 where both Fishers are 0, because nothing asks for a change there.

    Raises:
        ConfigError: λ is negative or no number, or a side has no Fisher.
        LayoutError: A Fisher of another delta, or one rank's part of a delta.
        NonFiniteError: A Fisher that is zero everywhere, or holds NaN or infinity.
    """
    check_whole(delta)
    if not 0.0 <= lam < float("inf"):
        raise ConfigError("lam", expected="a number that is not negative", found=repr(lam), fix="Use 1 to weigh alike.")
    sides = [
        [fisher_of(one, delta) for one in ([side] if isinstance(side, Fisher) else side)] for side in (earlier, later)
    ]
    for name, side in zip(("earlier", "later"), sides, strict=True):
        if not side:
            raise ConfigError(name, expected="one Fisher or more", found="none", fix="Measure it with rf.fisher.")
    alone = all(len(side) == 1 for side in sides)
    restored, spared = (side[0] if alone else combine_fishers(side) for side in sides)
    return SoftRule({name: _share(value, spared.values[name], lam) for name, value in restored.values.items()}, lam)


def _share(earlier: Tensor, later: Tensor, lam: float) -> Tensor:
    a, b = earlier.double(), later.double()
    return torch.where(a > 0, a / (a + lam * b), 0.0).float()
