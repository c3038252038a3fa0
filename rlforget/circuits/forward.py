"""Forwards whose logits are kept only where an answer token is predicted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rlforget.circuits.task import TaskBatch
from rlforget.errors import LayoutError
from rlforget.interference.completions import accepted


def answer_logits(model: Any, batch: TaskBatch, prompts: Literal["clean", "counterfactual"] = "clean") -> Tensor:
    """Run the model on a batch's prompts and answers.

    Args:
        model: A causal language model whose output has `.logits`.
        batch: The pairs, on the model's device.
        prompts: Which of the two prompts.

    Returns:
        [B, K, vocabulary], the logits of the last K positions: K is `batch.kept` where the model can leave the others
        out (`logits_to_keep`), else T.
    """
    ids = batch.clean_ids if prompts == "clean" else batch.counterfactual_ids
    # Padding counts for nothing, as in generation.
    positions = (batch.attention_mask.cumsum(1) - 1).clamp_min(0)
    wished = {"position_ids": positions, "use_cache": False, "logits_to_keep": batch.kept}
    extra = accepted(model.forward, wished)
    logits: Tensor = model(input_ids=ids, attention_mask=batch.attention_mask, **extra).logits
    return logits[:, -batch.kept :]


def embedding_of(model: Any) -> nn.Module:
    """Return the module that turns token ids into the first vectors of the residual stream.

    Raises:
        LayoutError: The model has none.
    """
    get = getattr(model, "get_input_embeddings", None)
    found = get() if callable(get) else next((m for m in model.modules() if isinstance(m, nn.Embedding)), None)
    if not isinstance(found, nn.Module):
        raise LayoutError(
            type(model).__name__,
            expected="a token embedding",
            found="none",
            fix="Give the model get_input_embeddings().",
        )
    return found


@contextmanager
def measuring(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no parameter that requires a gradient; both as found afterwards."""
    required = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        for parameter, _ in required:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, flag in required:
            parameter.requires_grad_(flag)
        for module, mode in modes:
            module.training = mode


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a model's parameters."""
    return next(model.parameters()).device
