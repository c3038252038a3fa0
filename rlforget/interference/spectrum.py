"""How low-dimensional the conflict is: spectra, principal angles, and the curve of damage against directions.

All of it is worked out in the sample space, from the Gram matrix W Wᵀ of W = [G_A; G_B] and from G_A δ: with
G_A G_Aᵀ = Σ w_j q_j q_jᵀ the directions are v_j = G_Aᵀ q_j/√w_j, the share of δ along k of them is
u_k = Σ v_j (v_jᵀ δ) = G_Aᵀ Σ q_j (q_jᵀ G_A δ)/w_j, and it explains Σ (q_jᵀ G_A δ)² of ‖G_A δ‖². That the damage
concentrates in few directions is a finding of 2606.02398; the measures are this project's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rlforget.counting import counted
from rlforget.errors import NothingLostError
from rlforget.interference.blocks import subtract_block_
from rlforget.interference.completions import Batches
from rlforget.interference.forms import PLAIN_BYTES, Form, check_settings, flat, refuse_unless, sources_of, space_of
from rlforget.interference.gradient_stack import GradientStack
from rlforget.interference.linearisation import Linearisation, SampleSpace, Sources
from rlforget.interference.measured_subspace import Curve, CurvePoint, GradientSpectrum, MeasuredSubspace
from rlforget.interference.point import Frozen, moved
from rlforget.interference.rows import Kind

if TYPE_CHECKING:
    from rlforget.delta import Delta


def measure_subspace(
    model: nn.Module,
    delta: Delta,
    restore: Sequence[Batches],
    protect: Sequence[Batches] = (),
    *,
    samples: int = 256,
    rows: Kind = "sequence",
    row_budget: int | None = None,
    restore_weights: Sequence[float] | None = None,
    protect_weights: Sequence[float] | None = None,
    counts: Sequence[int] | None = None,
    evaluate: Callable[[], float] | None = None,
    form: Form = "auto",
    block: int = 16,
    frozen: Frozen = "error",
    seed: int = 0,
    tokenizer: Any = None,
) -> MeasuredSubspace:
    """Measure in how many directions a change damages the domains to restore, and whether the others share them.

    Gradients are taken as for `conflict_subspace`. Random directions are held like a plain form's rows; where so many
    do not fit, the control's curve ends before.

    Args:
        model: A transformers causal language model at the delta's after bits, which are back afterwards.
        delta: The later change, from the stage to restore to now.
        restore: Domains (or batches, see `Batches`) that were damaged.
        protect: Domains whose present skill is to stay.
        samples: Completions a domain.
        rows: See `conflict_subspace`.
        row_budget: Rows a domain at most.
        restore_weights: What each domain to restore counts; by default all count 1.
        protect_weights: Likewise for those to protect.
        counts: Numbers of directions of the curves' points; by default the powers of two, and all.
        evaluate: Called with the model held where each point of each curve leads, rounded stochastically to the stored
            dtype; for instance the share of the loss regained, by reward, which needs prompts of its own.
        form: "plain", "streamed" or "auto", as in `conflict_subspace`.
        block: Rows whose activations the streamed form holds at once.
        frozen: "skip" leaves frozen parameters and quantised tensors out of δ.
        seed: Seed of prompts, completions, drawn rows and random directions.
        tokenizer: Encodes a domain's prompts; by default the one in the model's folder.

    Raises:
        ConfigError: An argument out of range, or no changed parameter takes a gradient.
        EmptyDomainError: A domain without samples.
        LayoutError: The delta is of another architecture.
        NonFiniteError: A gradient is NaN or infinite; the message names the tensor.
        ParameterError: The delta changed a frozen or quantised tensor, and `frozen` is "error".
        NothingLostError: The change does not change what the domains to restore put out.
        WrongBaseError: The model is not at the delta's after bits.
    """
    check_settings(restore, samples=samples, rows=rows, row_budget=row_budget, lam=1.0, form=form, block=block)
    positive = counts is None or (len(counts) > 0 and all(count >= 1 for count in counts))
    refuse_unless(("counts", positive, "one positive number or more", counts))
    sources = sources_of(
        model,
        delta,
        restore,
        protect,
        samples=samples,
        rows=rows,
        row_budget=row_budget,
        restore_weights=restore_weights,
        protect_weights=protect_weights,
        frozen=frozen,
        seed=seed,
        tokenizer=tokenizer,
    )
    refuse_unless(("delta", bool(sources.columns), "a changed parameter that takes a gradient", "none"))
    change = flat(delta, sources.columns)
    space = space_of(Linearisation.draw(sources, [change] * len(restore), torch.zeros_like(change)), form, block=block)
    change = change.to(space.device)
    gram, target = space.gram(), space.along(change)
    if not float(target.norm()) > 0.0:
        raise NothingLostError(
            "the domains to restore",
            expected="outputs that the change changes",
            found="outputs that stay as they were",
            fix="Give the domains that lost, and the delta since their stage.",
        )
    n = target.numel()
    a, b = _Side.of(gram[:n, :n]), _Side.of(gram[n:, n:]) if gram.shape[0] > n else None
    cosines = _cosines(a, b, gram[:n, n:]) if b is not None else gram.new_zeros(0)
    along = a.vectors.T @ target
    shares = along.square() / target.square().sum()
    chosen = _counts(a.rank) if counts is None else sorted({min(count, a.rank) for count in counts})
    plan = _Plan(space, sources, change, target, evaluate, seed)
    weights = a.vectors * (along / a.values)  # [n, rank]: Σ over directions gives y of u = G_Aᵀ y
    return MeasuredSubspace(
        restore=a.spectrum,
        protect=None if b is None else b.spectrum,
        damage=float(target.norm()),
        shares=tuple(shares.tolist()),
        angles=tuple(cosines.clamp(max=1.0).acos().tolist()),
        overlap=float(cosines.square().mean()) if cosines.numel() else 0.0,
        overlap_by_chance=0.0 if b is None else max(a.rank, b.rank) / change.numel(),
        by_share=plan.curve(weights[:, shares.argsort(descending=True, stable=True)], gram, chosen),
        by_eigenvalue=plan.curve(weights, gram, chosen),
        random=plan.control(chosen),
    )


@dataclass(frozen=True)
class _Side:
    """The eigenvectors of one side's Gram matrix [n, n] above the cutoff, by descending eigenvalue."""

    spectrum: GradientSpectrum
    values: Tensor  # [rank]
    vectors: Tensor  # [n, rank]

    @classmethod
    def of(cls, gram: Tensor) -> _Side:
        values, vectors = torch.linalg.eigh(gram)
        values, vectors = values.flip(0).clamp_min(0.0), vectors.flip(1)
        spectrum = GradientSpectrum.of(values)
        return cls(spectrum, values[: spectrum.rank], vectors[:, : spectrum.rank])

    @property
    def rank(self) -> int:
        return self.spectrum.rank


def _cosines(a: _Side, b: _Side, across: Tensor) -> Tensor:
    """Cosines of the principal angles of two row spans, descending, from G_A G_Bᵀ = `across`."""
    inner = a.vectors.T @ across @ b.vectors / (a.values.sqrt().unsqueeze(1) * b.values.sqrt())
    cosines: Tensor = torch.linalg.svdvals(inner)
    return cosines


def _counts(rank: int) -> list[int]:
    return [*(1 << power for power in range(rank.bit_length()) if 1 << power < rank), rank]


@dataclass(frozen=True)
class _Plan:
    """What the curves have in common."""

    space: SampleSpace
    sources: Sources
    change: Tensor
    target: Tensor
    evaluate: Callable[[], float] | None
    seed: int

    def curve(self, weights: Tensor, gram: Tensor, counts: Sequence[int]) -> Curve:
        """The curve over the directions whose weights over the rows of G_A are the columns of `weights`."""
        n = self.target.numel()
        points = []
        for count in counted("points of the curve", counts):
            y = gram.new_zeros(gram.shape[0])
            y[:n] = weights[:, :count].sum(1)
            reached = gram @ y  # [G_A u; G_B u]
            measured = None if self.evaluate is None else self._measured(self.space.combined(y))
            norm = float((y @ reached).clamp_min(0.0).sqrt())
            points.append(self._point(count, reached[:n], reached[n:], norm, measured))
        return tuple(points)

    def control(self, counts: Sequence[int]) -> Curve:
        """The curve over random directions: as many more than fit are left out."""
        fitting = [count for count in counts if 4 * count * self.change.numel() <= PLAIN_BYTES]
        return tuple(self._random(fitting)) if fitting else ()

    def _random(self, counts: Sequence[int]) -> Iterator[CurvePoint]:
        rows = GradientStack.random(max(counts), self.change, self.seed)
        product, onto = rows.gram(), rows.along(self.change)
        for count in counts:
            y = torch.zeros_like(onto)
            y[:count] = torch.linalg.solve(product[:count, :count], onto[:count])
            u = rows.combined(y)
            sides = self.space.along(u), self.space.along(u, protect=True)
            measured = None if self.evaluate is None else self._measured(u)
            yield self._point(count, *sides, float(u.double().norm()), measured)

    def _point(
        self, count: int, reached: Tensor, side_effect: Tensor, norm: float, measured: float | None
    ) -> CurvePoint:
        left = (self.target - reached).square().sum() / self.target.square().sum()
        share = norm / float(self.change.double().norm())
        return CurvePoint(count, 1.0 - float(left), float(side_effect.norm()), share, measured)

    def _measured(self, correction: Tensor) -> float:
        """Evaluate the model at now − `correction`, float32 [N]. Its bits are put back."""
        assert self.evaluate is not None
        columns: Mapping[str, Any] = self.sources.columns

        def corrected(name: str, now: Tensor) -> Tensor:
            column, new = columns[name], now.clone()
            step = correction[column.span].to(now.device).view(now.shape)
            subtract_block_(new, step, column.box, seed=self.seed, offset=column.offset)
            return new

        with moved(self.sources.model, {name: column.parameter for name, column in columns.items()}, corrected):
            return float(self.evaluate())
