"""SFT against RL: one domain, the same start, the same reward; what did each forget?"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from rlforget import delta as deltas
from rlforget import domains
from rlforget.experiments.measure import rewards
from rlforget.experiments.settings import SEQUENCE, TARGET, Settings
from rlforget.interference.divergence import kl_divergence
from rlforget.training import Progress, StageConfig, train_stage

_STEPS = 500  # both stop at their reward; this bounds a stage that never gets there
_WINDOW = 5  # steps over which the reward is averaged
_SEQUENCES = 128  # a step, of both


def sft_and_rl(base: Any, tokenizer: Any, settings: Settings, seed: int, progress: Progress) -> dict[str, Any]:
    """Train copies of `base` on the target domain by GRPO and by SFT, each until the same sampled training reward.

    The base should be good at the other domains: on one that is not, either fine-tune makes the others better, by
    making the model surer of itself, and that hides what it forgets.

    Returns:
        `target`, `base` (rewards) and, for `grpo` and `sft`: steps, rewards of every domain, the mean reward lost on
        the other domains, update sparsity in float32 and in bfloat16, and KL(base ‖ fine-tune) by domain.
    """
    start = rewards(base, tokenizer, count=settings.evaluation_prompts)
    shared: dict[str, Any] = {
        "domain": TARGET,
        "steps": _STEPS,
        "learning_rate": settings.target_rate,
        "stop_at_reward": settings.target_reward,
        "stop_window": _WINDOW,
    }
    stages = {
        "grpo": StageConfig(method="grpo", prompts=_SEQUENCES // 8, samples=8, **shared),
        "sft": StageConfig(method="sft", prompts=_SEQUENCES, evaluate_every=1, **shared),
    }
    tuned = {
        method: _tuned(base, tokenizer, stage, start, settings, seed, progress) for method, stage in stages.items()
    }
    return {"target": TARGET, "base": {"rewards": start}, **tuned}


def _tuned(
    base: Any,
    tokenizer: Any,
    stage: StageConfig,
    start: dict[str, float],
    settings: Settings,
    seed: int,
    progress: Progress,
) -> dict[str, Any]:
    model = copy.deepcopy(base)
    result = train_stage(model, tokenizer, stage, seed=seed, progress=progress)
    after = rewards(model, tokenizer, count=settings.evaluation_prompts)
    others = [name for name in SEQUENCE if name != TARGET]
    kl = {
        name: kl_divergence(base, model, domains.get(name), samples=settings.samples, tokenizer=tokenizer).mean
        for name in SEQUENCE
    }
    sparsity = {
        str(dtype).removeprefix("torch."): deltas.diff(_cast(base, dtype), _cast(model, dtype)).sparsity
        for dtype in (torch.float32, torch.bfloat16)
    }
    return {
        "steps": result.steps,
        "seconds": result.seconds,
        "rewards": after,
        "forgotten": sum(start[name] - after[name] for name in others) / len(others),
        "sparsity": sparsity,
        "kl_to_base": kl,
    }


def _cast(model: Any, dtype: torch.dtype) -> dict[str, Tensor]:
    """The model's tensors, one name a storage, in a storage dtype."""
    return {name: parameter.detach().to(dtype) for name, parameter in model.named_parameters()}
