"""The refresh: a short fine-tune on an earlier domain after the later ones, the trained peer of a rollback.

A refresh goes on from the weights that it is given: to start from the closed-form step, roll back first.

    rf.rollback(model, delta, subspace)
    rf.training.refresh(model, tokenizer, "math", steps=10, protect=["writing"])
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from rlforget import domains
from rlforget.domains import Domain
from rlforget.training.config import StageConfig
from rlforget.training.log import Log
from rlforget.training.progress import Progress
from rlforget.training.protection import Protection, protecting
from rlforget.training.stage import StageResult, train_stage


def refresh(
    model: Any,
    tokenizer: Any,
    domain: str | Domain,
    *,
    steps: int = 10,
    method: Literal["grpo", "sft"] = "grpo",
    learning_rate: float = 1e-3,
    prompts: int = 16,
    protect: Sequence[str | Domain] = (),
    protection: Protection = "project",
    protect_samples: int = 256,
    lam: float = 1.0,
    seed: int = 0,
    log: Log | None = None,
    progress: bool | Progress = True,
    callbacks: Sequence[Any] = (),
) -> StageResult:
    """Train `model` in place for a few steps on an earlier domain.

    With `grpo` a refresh costs `steps * prompts * 8` rewarded samples, and needs some reward left to learn from.

    Args:
        model: A transformers causal language model.
        tokenizer: Its tokenizer.
        domain: The domain to refresh.
        steps: Optimizer steps.
        method: How to train.
        learning_rate: Of AdamW.
        prompts: Different prompts a step.
        protect: Domains whose present skill is to stay; see `protecting`.
        protection: `project` takes off each step what lies in the span of their gradients; `fisher` shortens it where
            their Fishers are large; `surgery` takes off each gradient what points against theirs.
        protect_samples: Completions a protected domain.
        lam: λ of `fisher`.
        seed: Decides the examples and all draws.
        log: Called with each event.
        progress: True shows a bar on a terminal and lines elsewhere.
        callbacks: Further `TrainerCallback`s, called after the protection; see `following`.

    Raises:
        RlforgetError: As `train_stage` and `protecting`.
    """
    chosen = domains.get(domain)
    spec = domain if isinstance(domain, str) else chosen.name
    stage = StageConfig(domain=spec, method=method, steps=steps, learning_rate=learning_rate, prompts=prompts)
    called = list(callbacks)
    if protect:
        guard = protecting(model, tokenizer, protect, protection, samples=protect_samples, lam=lam, seed=seed)
        called.insert(0, guard)
    return train_stage(model, tokenizer, stage, seed=seed, domain=chosen, log=log, progress=progress, callbacks=called)
