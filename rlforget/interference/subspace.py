"""The conflict subspace: the few directions along which the later change damages the earlier domains.

The correction u minimises ½‖G_A(δ − u)‖² + (λ/2)‖G_B u‖² + (μ/2)‖u‖². The rows of G_A are gradients of
log π(completion | prompt) of the domains to restore, taken half-way between before and after, where G_A δ is the
second-order accurate difference of the outputs at the two ends; those of G_B, of the domains to protect, are taken at
the present weights. With W = [G_A; √λ G_B] it is solved in the sample space: (W Wᵀ + μI) y = [G_A δ; 0], u = Wᵀ y.
The rule is this project's own; that the damage concentrates in such a subspace is a finding of 2606.02398.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from rlforget.errors import ZeroGradientError
from rlforget.interference.choosing import Problem, choose, ridge_of, solve
from rlforget.interference.completions import Batches
from rlforget.interference.forms import Form, check_settings, flat, refuse_unless, sources_of, space_of
from rlforget.interference.gradient_stack import GradientStack
from rlforget.interference.linearisation import Linearisation, SampleSpace, Sources
from rlforget.interference.point import Frozen, check_at_after
from rlforget.interference.rows import Kind
from rlforget.interference.sample_gradients import Column
from rlforget.interference.streamed import StreamedGradients
from rlforget.weights import open_weights

if TYPE_CHECKING:
    from rlforget.delta import Delta

_PROBES = {GradientStack: 16, StreamedGradients: 4}  # there each is a backward pass and as large as the model


@dataclass(frozen=True)
class Pass:
    """What one pass of the solution did, in the linear model that it solved.

    Attributes:
        restore_rows: Rows of G_A.
        protect_rows: Rows of G_B.
        mu: The ridge, absolute.
        lam: The weight of the protected domains.
        damage: ‖G_A δ‖ with δ what was left before this pass: root mean square over the completions of the change of
            log π, in nats, summed over the domains to restore. With rows of tokens, that of the tokens' changes.
        damage_left: ‖G_A (δ − u)‖ after it.
        side_effect: ‖G_B u‖, likewise for the domains to protect.
        norm_share: ‖u‖ / ‖δ‖.
    """

    restore_rows: int
    protect_rows: int
    mu: float
    lam: float
    damage: float
    damage_left: float
    side_effect: float
    norm_share: float


@dataclass(frozen=True)
class ConflictSubspace:
    """The correction u: subtract it from the present weights to undo the damage.

    Attributes:
        correction: For each tensor that the delta changed and that takes gradients, u in float32, of the tensor's
            shape, or that of the block that this rank holds: dense, also where the delta changed nothing.
        passes: What each pass did; none where there is nothing to correct.
        probes: For each tensor of `correction`, float32 [16, numel], or 4 of the streamed form: signed random sums of
            the rows of the last G_A, so that ‖P v‖ estimates ‖G_A v‖ for any v.
        whole_norm: ‖u‖ on all ranks, where the model is spread over several.
    """

    correction: dict[str, Tensor]
    passes: tuple[Pass, ...]
    probes: dict[str, Tensor]
    whole_norm: float | None = None

    @property
    def norm(self) -> float:
        """‖u‖."""
        if self.whole_norm is not None:
            return self.whole_norm
        return math.sqrt(sum(float(value.double().square().sum()) for value in self.correction.values()))

    def to_dict(self) -> dict[str, Any]:
        """Return the diagnostics, for programs."""
        return {"norm": self.norm, "passes": [asdict(one) for one in self.passes]}


def conflict_subspace(
    model: nn.Module,
    delta: Delta,
    restore: Sequence[Batches],
    protect: Sequence[Batches] = (),
    *,
    since: Sequence[Delta] | None = None,
    samples: int = 256,
    rows: Kind = "sequence",
    row_budget: int | None = None,
    restore_weights: Sequence[float] | None = None,
    protect_weights: Sequence[float] | None = None,
    mu: float | Literal["auto"] = 1e-4,
    lam: float | Literal["auto"] = 1.0,
    passes: int = 2,
    form: Form = "auto",
    block: int = 16,
    frozen: Frozen = "error",
    seed: int = 0,
    tokenizer: Any = None,
    random: bool = False,
) -> ConflictSubspace:
    """Find the correction that undoes the damage to some domains and spares others, without training.

    The plain form holds every row's gradient, 4 bytes × rows × changed tensors' entries. The streamed form holds none:
    see `StreamedGradients`. They differ by rounding.

    Under torch.distributed every rank calls this with the same arguments and a model of its own; the streamed form
    spreads completions and rows over the ranks, and every rank gets the same bits. A model that is itself spread over
    the ranks takes the plain form: every rank goes through the same rows, holds their gradients at the weights that it
    has, and gets u there; what they exchange are sums and the matrices of the sample space.

    Args:
        model: A transformers causal language model at the delta's after bits. It is moved in place, and its bits are
            back afterwards, whatever happens.
        delta: The later change, from the stage to restore to now.
        restore: Domains (or batches, see `Batches`) that were damaged; stacked in G_A.
        protect: Domains whose present skill is to stay; stacked in G_B.
        since: For each domain to restore the change from its own best stage to now, where they were best at different
            stages: each then has a midpoint and a G_A δ of its own, and one correction serves all. `delta` is the one
            that reaches back farthest. By default `delta` for each.
        samples: Completions a domain, sampled from the model at the point of the gradient. Rows are divided by the root
            of their domain's count.
        rows: A row a completion ("sequence"), a token ("token"), or a likely token at each place ("logit"), see
            `rows.domain_rows`. The richer ones get more out of a prompt, and need more of those to protect.
        row_budget: Rows a domain at most, drawn from all; by default all.
        restore_weights: What each domain to restore counts in ‖G_A(δ − u)‖²; by default all count 1.
        protect_weights: Likewise for those to protect.
        mu: Ridge, in units of the mean squared norm of G_A's rows. Positive; or "auto", chosen on held-out rows.
        lam: Weight of the protected domains, or "auto".
        passes: How often to solve; each pass linearises anew about the weights that the ones before it lead to. One is
            half the work, and enough where the loss is not deep (docs/results.md).
        form: "plain", "streamed", or "auto": plain on one process while the gradients fit `forms.PLAIN_BYTES`.
        block: Rows whose activations the streamed form holds at once; two blocks are.
        frozen: "skip" leaves frozen parameters and quantised tensors where they are, with no part in δ or u.
        seed: Seed of prompts, completions, drawn rows and probes.
        tokenizer: Encodes a domain's prompts; by default the one in the model's folder.
        random: The control: G_A's rows are as many random directions, nothing is protected, and u is the share of δ in
            their span. Always plain, with a μ that is a number.

    Raises:
        ConfigError: An argument out of range.
        EmptyDomainError: A domain without samples, or whose completions have no token to score.
        LayoutError: The delta is of another architecture.
        NonFiniteError: A gradient is NaN or infinite; the message names the tensor.
        ParameterError: The delta changed a frozen or quantised tensor, and `frozen` is "error".
        ShortDomainError: A domain has fewer prompts than `samples`.
        WrongBaseError: The model is not at the delta's after bits.
        ZeroGradientError: Every gradient of the domains to restore is zero.
    """
    check_settings(restore, samples=samples, rows=rows, row_budget=row_budget, lam=lam, form=form, block=block)
    refuse_unless(
        ("mu", mu == "auto" and not random if isinstance(mu, str) else mu > 0, 'above 0, or "auto"', repr(mu)),
        ("passes", passes >= 1, "at least 1", passes),
    )
    sources = sources_of(
        model,
        delta,
        () if random else restore,
        protect if lam and not random else (),
        samples=samples,
        rows=rows,
        row_budget=row_budget,
        restore_weights=restore_weights,
        protect_weights=protect_weights,
        frozen=frozen,
        seed=seed,
        tokenizer=tokenizer,
        shards=not random,
    )
    columns = sources.columns
    if not columns:
        return ConflictSubspace({}, (), {})
    change = flat(delta, columns)
    changes = [change] * len(restore) if since is None else _changes(since, model, delta, columns, len(restore))
    if random:
        change = change.to(next(model.parameters()).device)
        control = GradientStack.random(len(restore) * samples, change, seed)
        correction, report = _solved(control, change, [change], mu=mu, lam=0.0, norm=sources.norm)
        return _result(control, correction, [report], sources, seed)
    correction = torch.zeros_like(change)
    space: GradientStack | StreamedGradients | None = None
    reports: list[Pass] = []
    for _ in range(passes):
        at = Linearisation.draw(sources, changes, correction)
        space = space_of(at, form, block=block, into=space)
        prompts = torch.cat([rows["prompt"].cpu() for rows in at.blocks])
        whole, *left = (one.to(space.device) for one in (change - correction, *at.left()))
        step, report = _solved(space, whole, left, mu=mu, lam=lam, norm=sources.norm, prompts=prompts)
        correction += step.to(correction.device)
        reports.append(report)
    assert space is not None
    return _result(space, correction, reports, sources, seed)


def _changes(
    since: Sequence[Delta], model: nn.Module, delta: Delta, columns: Mapping[str, Column], domains: int
) -> list[Tensor]:
    """Return δ over the columns for each domain to restore; of equal deltas, one object."""
    refuse_unless(("since", len(since) == domains, f"a delta for each of {domains} domains", f"{len(since)} deltas"))
    found: dict[int, Tensor] = {}
    for one in since:
        if id(one) in found:
            continue
        check_at_after(open_weights(model, shards=True), one)
        beyond = [name for name, n in one.counts.items() if n and not delta.counts.get(name)]
        told = f"another that changed {beyond[0]!r} too" if beyond else ""
        refuse_unless(("delta", not beyond, "the delta that reaches back farthest of those in since=", told))
        found[id(one)] = flat(one, columns)
    return [found[id(one)] for one in since]


def _solved(
    space: SampleSpace,
    whole: Tensor,
    left: Sequence[Tensor],
    *,
    mu: float | str,
    lam: float | str,
    norm: Callable[[Tensor], float],
    prompts: Tensor | None = None,
) -> tuple[Tensor, Pass]:
    """Return u, float32 [N], for what is `left` of the change for each side of G_A; its norm is told as a share of
    `whole`. `prompts` are needed where μ or λ is "auto".
    """
    product = space.gram()
    target = space.along(left)
    restoring, height = target.numel(), product.shape[0]
    if not bool(product.diagonal()[:restoring].any()):
        raise ZeroGradientError(
            "the gradients of the domains to restore",
            expected="one that is not zero, at the tensors that the delta changed",
            found=f"zero in all {restoring} rows",
            fix="Pass batches with scored tokens that the changed weights bear on; from float16, in which small "
            "gradients vanish, load the model in bfloat16 or float32.",
        )
    if isinstance(mu, str) or isinstance(lam, str):
        assert prompts is not None
        gone = space.along(whole, protect=True) if height > restoring else None
        mu, lam = choose(Problem(product, target, gone, prompts.to(product.device)), mu, lam)
    weights, reached = solve(product, target, mu=mu, lam=lam)
    correction = space.combined(weights)
    return correction, Pass(
        restore_rows=restoring,
        protect_rows=height - restoring,
        mu=ridge_of(product, restoring, mu),
        lam=lam,
        damage=float(target.norm()),
        damage_left=float((target - reached[:restoring]).norm()),
        side_effect=float(reached[restoring:].norm()),
        norm_share=norm(correction) / norm(whole),
    )


def _result(
    space: SampleSpace, correction: Tensor, reports: Sequence[Pass], sources: Sources, seed: int
) -> ConflictSubspace:
    by_name = _by_name(correction, sources.columns)
    return ConflictSubspace(
        {name: value.view(sources.columns[name].shape) for name, value in by_name.items()},
        tuple(reports),
        _by_name(_probes(space, reports[-1], seed), sources.columns),
        None if sources.sharding is None else sources.norm(correction),
    )


def _by_name(values: Tensor, columns: Mapping[str, Column]) -> dict[str, Tensor]:
    """Split the last dimension by tensor, on the CPU."""
    return {name: values[..., column.span].clone().cpu() for name, column in columns.items()}


def _probes(space: SampleSpace, report: Pass, seed: int) -> Tensor:
    """Return signed sums of G_A's rows, float32 [probes, N], with E‖P v‖² = ‖G_A v‖²."""
    probes = _PROBES[type(space)]
    signs = torch.zeros(probes, report.restore_rows + report.protect_rows, dtype=torch.float64)
    drawn = torch.randint(0, 2, (probes, report.restore_rows), generator=torch.Generator().manual_seed(seed))
    signs[:, : report.restore_rows] = drawn.mul_(2).sub_(1) / math.sqrt(probes)
    return space.combined(signs.to(space.device))
