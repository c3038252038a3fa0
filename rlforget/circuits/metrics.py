"""How well a model answers: one number a prompt."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from rlforget.circuits.task import TaskBatch
from rlforget.errors import UnknownNameError

Metric = Callable[[Tensor, TaskBatch], Tensor]
"""From logits [B, K, vocabulary] of the last K ≤ T positions and a batch to [B], float32 (float64 of float64).

K must be at least `batch.kept`: every position that predicts an answer token is among them.
"""


def log_prob(logits: Tensor, batch: TaskBatch) -> Tensor:
    """Mean log-probability of the target's tokens, in nats."""
    return _mean(_answer_log_probs(logits, batch, batch.targets), batch.answer_mask)


def probability(logits: Tensor, batch: TaskBatch) -> Tensor:
    """exp of the mean log-probability of the target's tokens: the score of a target in 2605.28860."""
    return log_prob(logits, batch).exp()


def log_prob_difference(logits: Tensor, batch: TaskBatch) -> Tensor:
    """Log-probability of the target less that of the distractor, in nats: mean over the tokens where they differ.

    The distractor's tokens are scored after the target's, token by token.
    """
    at_answers = _answer_logits(logits, batch)  # the normalisation cancels in the difference
    target = at_answers.gather(-1, batch.targets.unsqueeze(-1)).squeeze(-1)
    distractor = at_answers.gather(-1, batch.distractors.unsqueeze(-1)).squeeze(-1)
    return _mean(target - distractor, batch.answer_mask & (batch.targets != batch.distractors))


METRICS: dict[str, Metric] = {
    "log_prob": log_prob,
    "log_prob_difference": log_prob_difference,
    "probability": probability,
}
"""The names that `metric=` takes."""


def get(metric: str | Metric) -> Metric:
    """Return the metric that goes by a name; a function is returned as it is.

    Raises:
        UnknownNameError: There is no such metric.
    """
    if callable(metric):
        return metric
    if metric not in METRICS:
        raise UnknownNameError(
            f"metric {metric!r}", expected=f"one of {', '.join(METRICS)}", found=repr(metric), fix="Check the spelling."
        )
    return METRICS[metric]


def name_of(metric: str | Metric) -> str:
    """Return what a metric is called."""
    return metric if isinstance(metric, str) else getattr(metric, "__name__", type(metric).__name__)


def _answer_logits(logits: Tensor, batch: TaskBatch) -> Tensor:
    """Pick the positions that predict the answer: [B, A, vocabulary], in float32 or float64."""
    left_out = batch.clean_ids.shape[1] - logits.shape[1]
    index = (batch.positions - left_out).clamp_min(0)  # absent answer tokens point anywhere; they are masked
    picked = logits.gather(1, index.unsqueeze(-1).expand(-1, -1, logits.shape[-1]))
    return picked if picked.dtype.itemsize == 8 else picked.float()


def _answer_log_probs(logits: Tensor, batch: TaskBatch, tokens: Tensor) -> Tensor:
    log_probs = _answer_logits(logits, batch).log_softmax(-1)
    return log_probs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    return (values * mask).sum(1) / mask.sum(1)
