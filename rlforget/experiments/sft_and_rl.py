"""SFT against RL: one domain, the same start, the same reward; what did each forget?"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from rlforget import delta as deltas
from rlforget import domains
from rlforget.experiments.measure import Rewards, rewards
from rlforget.experiments.settings import SEQUENCE, TARGET, Settings
from rlforget.interference.divergence import kl_divergence
from rlforget.training import Progress, StageConfig, train_stage

_LIMIT = 500  # steps; both stop at their reward, and this bounds a stage that never gets there
_WINDOW = 5  # steps over which the reward is averaged
_SEQUENCES = 128  # a step, of both
_SAMPLES = 8  # completions a prompt, of GRPO


def to_one_reward(start: Any, tokenizer: Any, settings: Settings, seed: int, progress: Progress) -> dict[str, Any]:
    """Train copies of `start` on the target domain by GRPO and by SFT, each until the same sampled training reward.

    The start should be good at the other domains: on one that is not, either fine-tune makes the others better, by
    making the model surer of itself, and that hides what it forgets.

    Returns:
        `target`, `start` (rewards) and, for `grpo` and `sft`: steps, rewards of every domain, `forgotten` (mean reward
        lost on the other domains), update sparsity in float32 and in bfloat16, `kl_to_start`: KL(start ‖ fine-tune) on
        each other domain, and `kl_on_target`.
    """
    common = {"steps": _LIMIT, "stop_at_reward": settings.target_reward, "stop_window": _WINDOW}
    grpo, sft = _stages(settings, **common)
    return _compared(
        start, tokenizer, settings, seed, {m.method: _tuned(start, tokenizer, m, seed, progress) for m in (grpo, sft)}
    )


def of_one_length(
    start: Any, by_grpo: Any, tokenizer: Any, settings: Settings, seed: int, progress: Progress
) -> dict[str, Any]:
    """Compare the sequence's last stage, `by_grpo`, with SFT of as many steps from the same `start`.

    Returns:
        As `to_one_reward`.
    """
    _, sft = _stages(settings, steps=settings.steps[-1])
    tuned = {"grpo": (by_grpo, settings.steps[-1]), "sft": _tuned(start, tokenizer, sft, seed, progress)}
    return _compared(start, tokenizer, settings, seed, tuned)


def _stages(settings: Settings, **common: Any) -> tuple[StageConfig, StageConfig]:
    common |= {"domain": TARGET, "learning_rate": settings.learning_rates[-1]}
    grpo = StageConfig(method="grpo", prompts=_SEQUENCES // _SAMPLES, samples=_SAMPLES, **common)
    return grpo, StageConfig(method="sft", prompts=_SEQUENCES, evaluate_every=1, **common)


def _tuned(start: Any, tokenizer: Any, stage: StageConfig, seed: int, progress: Progress) -> tuple[Any, int]:
    """Fine-tune a copy; return it and the steps it took."""
    model = copy.deepcopy(start)
    return model, train_stage(model, tokenizer, stage, seed=seed, progress=progress).steps


def _compared(
    start: Any, tokenizer: Any, settings: Settings, seed: int, tuned: dict[str, tuple[Any, int]]
) -> dict[str, Any]:
    before = rewards(start, tokenizer, count=settings.evaluation_prompts)
    measured = {
        method: {"steps": steps, **_measured(start, before, model, tokenizer, settings, seed)}
        for method, (model, steps) in tuned.items()
    }
    return {"target": TARGET, "start": {"rewards": before}, **measured}


def _measured(start: Any, before: Rewards, model: Any, tokenizer: Any, settings: Settings, seed: int) -> dict[str, Any]:
    after = rewards(model, tokenizer, count=settings.evaluation_prompts)
    others = [name for name in SEQUENCE if name != TARGET]

    def kl(name: str) -> float:
        return kl_divergence(
            start, model, domains.get(name), samples=settings.samples, seed=seed, tokenizer=tokenizer
        ).mean

    def sparsity(dtype: torch.dtype) -> float:
        return deltas.diff(_cast(start, dtype), _cast(model, dtype)).sparsity

    return {
        "rewards": after,
        "forgotten": sum(before[name] - after[name] for name in others) / len(others),
        "sparsity": {"float32": sparsity(torch.float32), "bfloat16": sparsity(torch.bfloat16)},
        "kl_to_start": {name: kl(name) for name in others},
        "kl_on_target": kl(TARGET),
    }


def _cast(model: Any, dtype: torch.dtype) -> dict[str, Tensor]:
    """The model's tensors, one name a storage, in a storage dtype."""
    return {name: parameter.detach().to(dtype) for name, parameter in model.named_parameters()}
