"""A low-rank adapter around a live model, merged into its weights when the stage has gone well."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlforget.errors import ConfigError, missing_extra
from rlforget.training.config import LoraConfig
from rlforget.weights.ranks import is_first


@contextmanager
def adapter(model: Any, config: LoraConfig | None, out: Path | None = None) -> Iterator[Any]:
    """Yield the model to train: `model` itself, or, with a `config`, `model` under a fresh adapter.

    The adapter is merged at the end, and taken off without a trace on an exception. Either way `model` keeps its
    modules and its parameters. Its factors are written to `out` first, as PEFT writes them: merged into the weights
    that the stage began with they give the very bits it ended with.

    Raises:
        ConfigError: `target_modules` names no module of the model.
        MissingExtraError: peft is not installed.
    """
    if config is None:
        yield model
        return
    if importlib.util.find_spec("peft") is None:
        raise missing_extra("peft", "train")
    adapted = _wrap(model, config)
    try:
        yield adapted
    except BaseException:
        adapted.unload()
        raise
    if out is not None and is_first():
        adapted.save_pretrained(out)
    adapted.merge_and_unload()


def _wrap(model: Any, config: LoraConfig) -> Any:
    import peft

    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=config.target_modules,
        task_type="CAUSAL_LM",
    )
    try:
        return peft.get_peft_model(model, settings)
    except ValueError as fault:
        raise ConfigError(
            "lora.target_modules",
            expected="'all-linear' or names of modules of the model",
            found=str(fault),
            fix="Name modules such as q_proj.",
        ) from fault
