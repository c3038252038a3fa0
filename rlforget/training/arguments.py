"""From a stage's configuration to TRL's arguments.

TRL's defaults are made for models of billions of parameters on a GPU. What differs here was measured on a miniature:
activation checkpointing (half as slow again), bfloat16 autocast and the decaying, tiny learning rate are off unless
they are asked for, and so are evaluation and reports of the trainer's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from rlforget.errors import ConfigError
from rlforget.training.config import StageConfig
from rlforget.training.world import world_size


def grpo_arguments(
    stage: StageConfig, *, seed: int, device: str, folder: str, saving: Mapping[str, Any], max_new_tokens: int
) -> Any:
    """Build TRL's `GRPOConfig`: one generation of `prompts * samples` completions an optimizer step, on policy.

    Args:
        stage: What to do.
        seed: Seed of all draws.
        device: Type of the device.
        folder: Where the trainer writes.
        saving: The arguments that make it save; none: it does not.
        max_new_tokens: Longest completion.
    """
    from trl import GRPOConfig

    return GRPOConfig(
        **_shared(GRPOConfig, stage, saving, seed=seed, device=device, folder=folder),
        num_generations=stage.samples,
        max_completion_length=max_new_tokens,
        temperature=stage.temperature,
        beta=stage.beta,
        loss_type=stage.loss,
        scale_rewards=stage.scale_rewards,
        **({} if stage.vllm is None else {"use_vllm": True, "vllm_mode": stage.vllm}),
        shuffle_dataset=False,  # the examples are drawn at random already
    )


def sft_arguments(stage: StageConfig, *, seed: int, device: str, folder: str, saving: Mapping[str, Any]) -> Any:
    """Build TRL's `SFTConfig`: loss on completions alone, sequences neither cut nor packed; see `grpo_arguments`."""
    from trl import SFTConfig

    return SFTConfig(
        **_shared(SFTConfig, stage, saving, seed=seed, device=device, folder=folder),
        max_length=None,
        packing=False,
    )


def _shared(
    kind: type[Any], stage: StageConfig, saving: Mapping[str, Any], *, seed: int, device: str, folder: str
) -> dict[str, Any]:
    devices = world_size()
    micro = stage.micro_batch or max(stage.sequences // devices, 1)
    if stage.sequences % (micro * devices):
        raise ConfigError(
            "key micro_batch",
            expected=f"{devices} processes that share the {stage.sequences} sequences of a step evenly",
            found=f"{micro} in one forward pass",
            fix="Change prompts, samples or micro_batch, or start another number of processes.",
        )
    # transformers renamed the option; the old name warns where there is the new one.
    new_name = "activation_checkpointing" in {field.name for field in fields(kind)}
    checkpointing = "activation_checkpointing" if new_name else "gradient_checkpointing"
    return {
        "output_dir": folder,
        "seed": seed,
        "use_cpu": device == "cpu",
        "max_steps": stage.steps,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": stage.sequences // (micro * devices),
        "learning_rate": stage.learning_rate,
        "lr_scheduler_type": _SCHEDULES[stage.schedule],
        "warmup_steps": stage.warmup,
        "weight_decay": stage.weight_decay,
        "max_grad_norm": stage.max_grad_norm,
        "bf16": stage.bf16,
        checkpointing: stage.activation_checkpointing,
        "logging_strategy": "steps",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # it would report an old loss in place of NaN
        "eval_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": device != "cpu",
        "save_strategy": "no",
        **saving,
    }


_SCHEDULES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}
