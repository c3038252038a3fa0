"""Forwards whose logits are kept only where an answer token is predicted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rlforget.circuits.past import Past
from rlforget.circuits.task import TaskBatch
from rlforget.errors import LayoutError
from rlforget.interference.completions import accepted


def answer_logits(
    model: Any, batch: TaskBatch, prompts: Literal["clean", "counterfactual"] = "clean", past: Past | None = None
) -> Tensor:
    """Run the model on a batch's prompts and answers.

    Args:
        model: A causal language model whose output has `.logits`.
        batch: The pairs, on the model's device.
        prompts: Which of the two prompts.
        past: Keys and values of the first tokens, which are then not run; the batch may be copies of theirs.

    Returns:
        [B, K, vocabulary], the logits of the last K positions: K is `batch.kept` where the model can leave the others
        out (`logits_to_keep`), else all that are run.
    """
    ids, mask = batch.clean_ids, batch.attention_mask
    if prompts == "counterfactual":
        ids, mask = batch.counterfactual_ids, batch.counterfactual_mask
    # Padding counts for nothing, as in generation.
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    wished: dict[str, Any] = {"use_cache": False, "logits_to_keep": batch.kept}
    if past is not None:
        ids, positions = ids[:, past.length :], positions[:, past.length :]
        wished["past_key_values"] = past.cache(len(batch))
    extra = accepted(model.forward, {**wished, "position_ids": positions})
    logits: Tensor = model(input_ids=ids, attention_mask=mask, **extra).logits
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
    """Evaluation mode and no parameter that requires a gradient; both as found afterwards.

    The last positions of a batch, which `answer_logits` asks for, are a strided view. Of such a view and a weight
    without a gradient torch makes one small product a row, each of which reads the whole vocabulary's weights: a third
    of a forward's time in GPT-2. So the head that makes the logits is given a copy of them.
    """
    required = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    head = _output_embedding(model)
    hook = None if head is None else head.register_forward_pre_hook(_contiguous)
    try:
        model.eval()
        for parameter, _ in required:
            parameter.requires_grad_(False)
        yield
    finally:
        if hook is not None:
            hook.remove()
        for parameter, flag in required:
            parameter.requires_grad_(flag)
        for module, mode in modes:
            module.training = mode


def _output_embedding(model: Any) -> nn.Module | None:
    get = getattr(model, "get_output_embeddings", None)
    found = get() if callable(get) else None
    return found if isinstance(found, nn.Module) else None


def _contiguous(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(arg.contiguous() if isinstance(arg, Tensor) else arg for arg in args)


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a model's parameters."""
    return next(model.parameters()).device
