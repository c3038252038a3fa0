"""Exact patching as one writes it first: one hooked forward a head."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.circuits.shapes import Prompts


@torch.no_grad()
def one_forward_a_head(model: Any, drawn: Prompts, *, last: bool = False) -> Tensor:
    """Score every head of a Qwen2 by replacing its output with that on the counterfactual prompts: [layers, heads].

    At all positions, or at the last one alone.
    """
    where = slice(-1 if last else 0, None)
    clean, counterfactual = torch.tensor(drawn.clean), torch.tensor(drawn.counterfactual)
    modules = [layer.self_attn.o_proj for layer in model.model.layers]
    width = model.config.hidden_size // model.config.num_attention_heads
    sources: list[Tensor] = []
    hooks = [module.register_forward_pre_hook(lambda _, args: sources.append(args[0])) for module in modules]
    model(counterfactual)
    for hook in hooks:
        hook.remove()
    before = _metric(model(clean).logits, drawn)
    scores = torch.zeros(len(modules), model.config.num_attention_heads)
    for layer, module in enumerate(modules):
        for head in range(scores.shape[1]):
            columns = slice(head * width, (head + 1) * width)

            def replace(_: Any, args: Any, layer: int = layer, columns: slice = columns) -> Any:
                changed = args[0].clone()
                changed[:, where, columns] = sources[layer][:, where, columns]
                return (changed,)

            hook = module.register_forward_pre_hook(replace)
            scores[layer, head] = before - _metric(model(clean).logits, drawn)
            hook.remove()
    return scores


def _metric(logits: Tensor, drawn: Prompts) -> Tensor:
    rows = torch.arange(len(logits))
    return (logits[rows, -1, drawn.targets] - logits[rows, -1, drawn.distractors]).mean()
