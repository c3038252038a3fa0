"""The Kronecker rule: in every linear layer, what to undo in the basis that both sides' curvatures share.

The curvature of a domain's loss in a weight W is taken to be R ⊗ C, with C the second moment of the vectors that W's
columns meet, the layer's inputs, and R that of its rows', the gradients at the layer's outputs (K-FAC: Martens and
Grosse, 1503.05671). The correction u of the change δ is the minimiser of
½⟨δ − u, R_A (δ − u) C_A⟩ + (λ/2)⟨u, R_B u C_B⟩. In the generalised eigenbases R_A P = R_B P diag(a), PᵀR_B P = I and
C_A Q = C_B Q diag(c), QᵀC_B Q = I, each direction gives back the share a_i c_j / (a_i c_j + λ) of δ, and
u = P ((PᵀR_A δ C_A Q) ∘ 1/(a_i c_j + λ)) Qᵀ. The rule is this project's own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rlforget.errors import NonFiniteError
from rlforget.interference.completions import Batches
from rlforget.interference.covariance import Covariance
from rlforget.interference.forms import check_settings, refuse_unless, sources_of
from rlforget.interference.moments import Moments, linear_layers, second_moments
from rlforget.interference.point import Frozen, moved, toward_before
from rlforget_kernels.common.pair_checks import LARGEST_RANK

if TYPE_CHECKING:
    from rlforget.delta import Delta


@dataclass(frozen=True)
class KroneckerLayer:
    """The correction u = P (S ∘ (R_A P)ᵀ δ (C_A Q)) Qᵀ of one weight [rows, columns].

    Attributes:
        read: R_A P, float32 [rows, r], and C_A Q, float32 [columns, c].
        write: P and Q, likewise.
        shrinkage: S = 1/(a_i c_j + λ), float32 [r, c].
        damage: ½⟨δ, R_A δ C_A⟩, the predicted rise of the earlier domains' loss, in nats a completion.
        damage_left: The same of δ − u.
        side_effect: ½⟨u, R_B u C_B⟩, for the protected domains.
    """

    read: tuple[Tensor, Tensor]
    write: tuple[Tensor, Tensor]
    shrinkage: Tensor
    damage: float = math.nan
    damage_left: float = math.nan
    side_effect: float = math.nan

    def correction(self, change: Tensor) -> Tensor:
        """Return u, float32, for δ float32 [rows, columns] on the bases' device."""
        core = self.shrinkage * (self.read[0].T @ change @ self.read[1])
        return self.write[0] @ core @ self.write[1].T

    def to(self, device: torch.device | str) -> KroneckerLayer:
        """Return the layer with its bases on a device."""
        read, write = ((rows.to(device), columns.to(device)) for rows, columns in (self.read, self.write))
        return replace(self, read=read, write=write, shrinkage=self.shrinkage.to(device))


@dataclass(frozen=True)
class KroneckerRule:
    """What the Kronecker rule gives back, for `rf.rollback`, and where it says that the damage lies.

    Attributes:
        layers: The changed weights of linear layers that the damage reaches, by the delta's names.
        uncovered: Changed parameters that the rule knows nothing of: norms, biases, embeddings, and weights that two
            modules share.
        lam: λ.
        damping: What was added to the protected domains' curvature, in units of its mean.
    """

    layers: dict[str, KroneckerLayer]
    uncovered: tuple[str, ...]
    lam: float
    damping: float

    @property
    def damage_shares(self) -> dict[str, float]:
        """The share of the predicted damage, over all of `layers`, that lies in each."""
        whole = sum(layer.damage for layer in self.layers.values())
        return {name: layer.damage / whole if whole else 0.0 for name, layer in self.layers.items()}

    def to_dict(self) -> dict[str, Any]:
        """Return what the rule predicts, for programs."""
        shares = self.damage_shares
        layers = {
            name: {
                "damage": layer.damage,
                "share": shares[name],
                "damage_left": layer.damage_left,
                "side_effect": layer.side_effect,
            }
            for name, layer in self.layers.items()
        }
        return {"lam": self.lam, "damping": self.damping, "layers": layers, "uncovered": list(self.uncovered)}

    def __repr__(self) -> str:
        return f"KroneckerRule({len(self.layers)} layers, lam={self.lam:g}, damping={self.damping:g})"


def kronecker_rule(
    model: nn.Module,
    delta: Delta,
    restore: Sequence[Batches],
    protect: Sequence[Batches] = (),
    *,
    samples: int = 256,
    restore_weights: Sequence[float] | None = None,
    protect_weights: Sequence[float] | None = None,
    lam: float = 0.3,
    damping: float = 0.3,
    frozen: Frozen = "error",
    seed: int = 0,
    tokenizer: Any = None,
) -> KroneckerRule:
    """Find, in every linear layer, the share of the change to give back in each direction of input and output.

    Second moments are streamed batch by batch, in one backward pass a domain: those of the domains to restore half-way
    between before and after, those of the domains to protect at the present weights. Over 512 entries wide they are
    kept as a low-rank part and a diagonal, and corrections there are the minimiser over the span of the leading 128
    directions of either side. At most 256 directions a side are corrected.

    Args:
        model: A transformers causal language model at the delta's after bits. It is moved in place, and its bits are
            back afterwards, whatever happens.
        delta: The later change, from the stage to restore to now.
        restore: Domains (or batches, see `Batches`) that were damaged; their completions count alike.
        protect: Domains whose present skill is to stay, likewise; none leaves the damping alone to hold back.
        samples: Completions a domain, sampled from the model where the moments are taken.
        restore_weights: What the curvature of each domain to restore counts; by default all count 1.
        protect_weights: Likewise for those to protect.
        lam: λ, positive: the larger, the less is undone.
        damping: Multiple of its mean curvature that the protected side gets in every direction. Positive.
        frozen: "skip" leaves frozen parameters and quantised tensors where they are.
        seed: Seed of prompts and completions.
        tokenizer: Encodes a domain's prompts; by default the one in the model's folder.

    Raises:
        ConfigError: An argument out of range.
        EmptyDomainError: A domain without samples.
        LayoutError: The delta is of another architecture.
        NonFiniteError: A gradient, an activation or the delta is NaN or infinite; the message names the tensor.
        ParameterError: The delta changed a frozen or quantised tensor, and `frozen` is "error".
        WrongBaseError: The model is not at the delta's after bits.
    """
    check_settings(restore, samples=samples, rows="sequence", row_budget=None, lam=lam, form="auto", block=1)
    refuse_unless(
        ("lam", 0.0 < lam < math.inf, "a positive number", repr(lam)),
        ("damping", 0.0 < damping < math.inf, "a positive number", repr(damping)),
    )
    sources = sources_of(
        model,
        delta,
        restore,
        protect,
        samples=samples,
        rows="sequence",
        row_budget=None,
        restore_weights=restore_weights,
        protect_weights=protect_weights,
        frozen=frozen,
        seed=seed,
        tokenizer=tokenizer,
    )
    parameters = {name: column.parameter for name, column in sources.columns.items()}
    owners = linear_layers(model, parameters)
    with moved(model, parameters, toward_before(delta, 0.5)):
        earlier = second_moments(model, owners, sources.restore, sources.restore_shares, seed=seed, tokenizer=tokenizer)
    later = second_moments(model, owners, sources.protect, sources.protect_shares, seed=seed, tokenizer=tokenizer)
    layers: dict[str, KroneckerLayer] = {}
    for name in owners.values():
        if name in earlier and earlier[name].rows.mean * earlier[name].columns.mean > 0.0:
            change = torch.zeros(delta[name].numel, dtype=torch.float64)
            change[delta[name].indices.long()] = delta[name].values.double()
            change = change.view(delta[name].shape).to(parameters[name].device)
            layers[name] = _solve(name, change, earlier.pop(name), later.pop(name, None), lam=lam, damping=damping)
    return KroneckerRule(layers, tuple(name for name in parameters if name not in owners.values()), lam, damping)


def _solve(
    name: str, change: Tensor, earlier: Moments, later: Moments | None, *, lam: float, damping: float
) -> KroneckerLayer:
    """Return the layer's correction and its effect on the quadratics, for δ float64 [rows, columns]."""
    damage = _energy(change, earlier)
    if not math.isfinite(damage):
        raise NonFiniteError(
            f"the change of {name!r}",
            expected="finite numbers",
            found="NaN or Inf",
            fix="Look for NaN or Inf in the weights on either side of the delta.",
        )
    a, p = _generalised(earlier.rows, None if later is None else later.rows, damping)
    c, q = _generalised(earlier.columns, None if later is None else later.columns, damping)
    # Where a domain's curvature is 0, so is what is read there: of A p only its rounding is left, which p may blow up.
    read = ((earlier.rows @ p) * (a > 0)).float(), ((earlier.columns @ q) * (c > 0)).float()
    layer = KroneckerLayer(read, (p.float(), q.float()), (1 / (torch.outer(a, c) + lam)).float())
    correction = layer.correction(change.float()).double()
    return replace(
        layer.to("cpu"),
        damage=damage,
        damage_left=_energy(change - correction, earlier),
        side_effect=0.0 if later is None else _energy(correction, later),
    )


def _energy(change: Tensor, moments: Moments) -> float:
    """Return ½⟨δ, R δ C⟩."""
    return 0.5 * float((change * (moments.columns @ (moments.rows @ change).T).T).sum())


def _generalised(earlier: Covariance, later: Covariance | None, damping: float) -> tuple[Tensor, Tensor]:
    """Solve A v = c (B + damping · mean(B) · I) v with vᵀ(B + …)v = 1.

    Without B, or where it is 0, the damping is that multiple of A's mean. Wide ones are solved within the span of the
    leading directions of both.

    Returns:
        The largest eigenvalues c, float64 [k], and the vectors [width, k]. Eigenvalues that the float32 products of
        A's sum hide are 0.
    """
    mean = later.mean if later is not None and later.mean > 0.0 else earlier.mean
    wide = earlier.wide
    if wide:
        leading = [one.leading()[0] for one in (earlier, later) if one is not None]
        basis = torch.linalg.qr(torch.cat(leading, dim=1)).Q
    else:
        basis = torch.eye(earlier.width, dtype=torch.float64, device=earlier.device)
    ridge = damping * mean * torch.eye(basis.shape[1], dtype=torch.float64, device=basis.device)
    a = basis.T @ (earlier @ basis)
    b = ridge if later is None else ridge + basis.T @ (later @ basis)
    values, vectors = _eigh(a, b)
    hidden = values <= torch.finfo(torch.float32).eps * len(values) * values.max()
    return values.masked_fill(hidden, 0.0).to(basis.device), basis @ vectors.to(basis.device)


def _eigh(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    from scipy.linalg import eigh

    size = a.shape[0]
    kept = min(size, LARGEST_RANK)
    symmetric = [((one + one.T) / 2).cpu().numpy() for one in (a, b)]
    values, vectors = eigh(*symmetric, subset_by_index=(size - kept, size - 1))
    return torch.from_numpy(values), torch.from_numpy(vectors)
