"""Measured damage: an earlier domain's loss, and how far the distribution moved, on the way from before to after.

The truth that `damage` predicts: L(θ_A + tδ) − L(θ_A) on the very completions that it takes. One model is moved between
the points in place, so no second copy of it is needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rlforget.counting import counted
from rlforget.errors import ConfigError
from rlforget.interference.completions import (
    Batches,
    check_finite,
    check_same,
    collect,
    completed,
    pieces,
    scored_log_probs,
    summed,
)
from rlforget.interference.divergence import Divergence, nats_between, summarised
from rlforget.interference.point import Frozen, check_at_after, measured_parameters, moved, toward_before
from rlforget.interference.sample_gradients import measuring
from rlforget.weights import open_weights

if TYPE_CHECKING:
    from rlforget.delta import Delta

POINTS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class DamageCurve:
    """What happened to an earlier domain between θ_A (t = 0) and now (t = 1), in nats a completion.

    Attributes:
        t: The points θ_A + tδ.
        rise: L(θ_A + tδ) − L(θ_A) at each, the mean over completions that π_A sampled (or that were given).
        rise_stderr: Its standard error over completions: of the paired difference, not of either loss.
        kl: KL(π_A ‖ π_t) at each, on the same completions.
        reverse: KL(π_now ‖ π_A), on completions that the model now samples (or that were given).
        loss: L(θ_A).
        count: Number of completions.
        skipped: Tensors that the delta changed and that stayed where they are, frozen or quantised.
    """

    t: tuple[float, ...]
    rise: tuple[float, ...]
    rise_stderr: tuple[float, ...]
    kl: tuple[Divergence, ...]
    reverse: Divergence
    loss: float
    count: int
    skipped: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values, for programs."""
        return asdict(self)


def damage_curve(
    model: nn.Module,
    delta: Delta,
    batches: Batches,
    *,
    t: Sequence[float] = POINTS,
    samples: int = 256,
    seed: int = 0,
    tokenizer: Any = None,
    frozen: Frozen = "error",
) -> DamageCurve:
    """Measure an earlier domain's loss and divergence along the way from before to after.

    With the same batches, `samples` and `seed` as `damage` it takes the same completions, so that the two differ by
    what the prediction misses and not by the draw. Between the ends the weights are rounded to the model's dtype: in
    half precision a change of few units in the last place happens in steps. Of a model that is spread over ranks, every
    rank calls this with the same arguments and a delta that is spread alike.

    Args:
        model: A transformers causal language model at the delta's after bits. It is moved in place (floating-point
            parameters alone), and its bits are back afterwards, whatever happens.
        delta: The later change, from the earlier domain's stage to now.
        batches: The earlier domain, its name, or batches (see `Batches`).
        t: The points, each from 0 to 1.
        samples: How many completions to take.
        seed: Seed of prompts and completions.
        tokenizer: Encodes a domain's prompts; by default the one in the model's folder.
        frozen: "skip" leaves frozen and quantised tensors at their present values throughout.

    Raises:
        ConfigError: `t` is empty or has a number outside [0, 1]; or other batches or settings on another rank.
        EmptyDomainError: There is nothing to sample.
        LayoutError: The delta is of another architecture.
        NonFiniteError: A log-probability is NaN or infinite.
        ParameterError: The delta changed a frozen or quantised tensor, and `frozen` is "error".
        ShortDomainError: The domain has fewer prompts than `samples`.
        WrongBaseError: The model is not at the delta's after bits.
    """
    points = tuple(float(share) for share in t)
    if not points or not all(0.0 <= share <= 1.0 for share in points):
        fix = "Give the points between before, 0, and after, 1."
        raise ConfigError("t", expected="numbers from 0 to 1", found=repr(points), fix=fix)
    spread = delta.sharding is not None
    parameters, skipped = measured_parameters(model, delta, frozen=frozen, shards=spread)
    check_at_after(open_weights(model, shards=spread), delta)
    prompts = collect(model, batches, samples=samples, seed=seed, tokenizer=tokenizer)
    if spread:
        check_same(prompts, points, samples, seed, frozen)
    rises: list[list[Tensor]] = [[] for _ in points]
    nats: list[list[Tensor]] = [[] for _ in points]
    losses: list[Tensor] = []
    backward: list[Tensor] = []

    @contextmanager
    def at(share: float) -> Iterator[None]:
        with ExitStack() as held:
            if share != 1.0:
                held.enter_context(moved(model, parameters, toward_before(delta, 1.0 - share)))
            yield

    def scores(share: float, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        with at(share), torch.no_grad():
            log_probs = scored_log_probs(model, batch)
            loss = -summed(log_probs, batch)
            check_finite(model, loss, f"the loss at t = {share:g}")
        return log_probs, loss.double()

    with measuring(model):
        with at(0.0):
            taken = list(completed(model, prompts, seed=seed, tokenizer=tokenizer))
        for batch in counted("completions", taken, size=lambda one: len(one["input_ids"])):
            for piece in pieces(model, batch):
                reference, start = scores(0.0, piece)
                losses.append(start.cpu())
                for position, share in enumerate(points):
                    log_probs, loss = scores(share, piece)
                    rises[position].append((loss - start).cpu())
                    nats[position].append(nats_between(reference, log_probs, piece).cpu())
        for batch in completed(model, prompts, seed=seed, tokenizer=tokenizer):
            for piece in pieces(model, batch):
                here, there = scores(1.0, piece)[0], scores(0.0, piece)[0]
                backward.append(nats_between(here, there, piece).cpu())
    summaries = [summarised(torch.cat(values)) for values in rises]
    return DamageCurve(
        points,
        tuple(one.mean for one in summaries),
        tuple(one.stderr for one in summaries),
        tuple(summarised(torch.cat(values)) for values in nats),
        summarised(torch.cat(backward)),
        float(torch.cat(losses).mean()),
        summaries[0].count,
        skipped,
    )
