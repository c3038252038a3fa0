"""The refresh: a short fine-tune on an earlier domain after the later ones, the trained peer of a rollback."""

from __future__ import annotations

from typing import Any, Literal

from rlforget import domains
from rlforget.domains import Domain
from rlforget.training.config import StageConfig
from rlforget.training.log import Log
from rlforget.training.progress import Progress
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
    seed: int = 0,
    log: Log | None = None,
    progress: bool | Progress = True,
) -> StageResult:
    """Train `model` in place for a few steps on an earlier domain.

    With `grpo` a refresh costs `steps * prompts * 8` rewarded samples, and needs some reward left to learn from.

    Raises:
        RlforgetError: As `train_stage`.
    """
    chosen = domains.get(domain)
    spec = domain if isinstance(domain, str) else chosen.name
    stage = StageConfig(domain=spec, method=method, steps=steps, learning_rate=learning_rate, prompts=prompts)
    return train_stage(model, tokenizer, stage, seed=seed, domain=chosen, log=log, progress=progress)
