"""A small form of a configuration: every stage of it runs, on the miniature, in seconds."""

from __future__ import annotations

from typing import Any

from rlforget.errors import ConfigError
from rlforget.training.config import SequenceConfig, StageConfig
from rlforget.training.plan import Plan

_STEPS, _PROMPTS, _SAMPLES, _EVALUATED = 2, 4, 2, 8


def smoke_test_of(config: SequenceConfig) -> SequenceConfig:
    """Return the configuration with its model, data and sizes replaced by small ones.

    Domains from datasets, with their prompts and rewards, become the built-in ones that their `smoke` names; vLLM and
    bfloat16, which need a GPU, are left out, and so are lengths and a learning rate for billions of parameters.

    Raises:
        ConfigError: A domain from a dataset has no `smoke`.
    """
    stands_for: dict[str, str] = {}
    for domain in config.domains:
        if domain.smoke is None:
            raise ConfigError(
                f"domain {domain.name!r}",
                expected="smoke:, the built-in domain that stands for it",
                found="none",
                fix="Add smoke: math, say.",
            )
        stands_for[domain.name] = domain.smoke
    specs = config.evaluation.domains
    evaluation = config.evaluation.model_copy(
        update={
            "count": _EVALUATED,
            "domains": None if specs is None else list(dict.fromkeys(stands_for.get(spec, spec) for spec in specs)),
        }
    )
    stages = [
        _small(stage, name, stands_for.get(stage.domain, stage.domain))
        for stage, name in zip(config.stages, Plan(config).names, strict=True)
    ]
    changes: dict[str, Any] = {
        "model": "miniature",
        "device": "cpu",
        "dtype": "auto",
        "domains": [],
        "continue_from": None,
    }
    return config.model_copy(update={**changes, "stages": stages, "evaluation": evaluation, "save_every": 1})


def _small(stage: StageConfig, name: str, domain: str) -> StageConfig:
    changes: dict[str, Any] = {
        "domain": domain,
        "name": name,
        "steps": _STEPS,
        "warmup": 0,
        "prompts": _PROMPTS,
        "micro_batch": None if stage.micro_batch is None else 2,
        "learning_rate": 1e-3,
        "bf16": False,
        "max_new_tokens": None,
        "vllm": None,
    }
    if stage.method == "grpo":
        changes["samples"] = _SAMPLES
    return stage.model_copy(update=changes)
