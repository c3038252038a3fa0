"""What heads are worth, in plain torch: one hooked forward for each, sharing no code with the package."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from rlforget.circuits import Task


def auroc(scores: Tensor, truth: Tensor) -> float:
    """Return how often a head of the circuit scores above one outside it; a tie counts half."""
    gaps = scores[truth][:, None] - scores[~truth][None]
    return float(((gaps > 0).double() + 0.5 * (gaps == 0).double()).mean())


def tokens(task: Task) -> dict[str, Tensor]:
    """Return the clean and counterfactual prompts [n, T], targets and distractors [n]; all prompts of one length."""
    table = {name: torch.tensor([getattr(p, name) for p in task.pairs]) for name in ("clean", "counterfactual")}
    return table | {name: torch.tensor([getattr(p, name)[0] for p in task.pairs]) for name in ("target", "distractor")}


@torch.no_grad()
def answers(model: Any, task: Task) -> Tensor:
    """Return the likeliest next token after each clean prompt, [n]."""
    return _last_logits(model, tokens(task)["clean"]).argmax(-1)


class Ablation:
    """Replaces heads at every position, by their outputs on the counterfactual prompts or by zero.

    Args:
        model: A GPT-2, Qwen2 or Llama.
        task: Pairs of one length, each answered by one token.
        kind: `resample` or `zero`.
        heads: Heads a layer.
        metric: `log_prob_difference` (target less distractor) or `log_prob`.
    """

    def __init__(self, model: Any, task: Task, kind: str, heads: int, metric: str = "log_prob_difference") -> None:
        if hasattr(model, "transformer"):
            self.sites = [block.attn.c_proj for block in model.transformer.h]
        else:
            self.sites = [layer.self_attn.o_proj for layer in model.model.layers]
        self.model, self.heads, self.table, self.metric = model, heads, tokens(task), metric
        self.sources: list[Tensor] = []
        with ExitStack() as hooks:
            for site in self.sites:
                keep = site.register_forward_pre_hook(lambda _, args: self.sources.append(args[0].clone()))
                hooks.callback(keep.remove)
            _last_logits(model, self.table["counterfactual"])
        if kind == "zero":
            self.sources = [torch.zeros_like(source) for source in self.sources]

    def value(self, replaced: Tensor) -> float:
        """Return the mean metric with the heads of bool [layers, heads] replaced."""
        with ExitStack() as hooks:
            for site, source, row in zip(self.sites, self.sources, replaced, strict=True):
                width = source.shape[-1] // self.heads
                here = row.repeat_interleave(width)

                def swap(_: Any, args: tuple[Tensor], source: Tensor = source, here: Tensor = here) -> tuple[Tensor]:
                    return (torch.where(here, source, args[0]),)

                hooks.callback(site.register_forward_pre_hook(swap).remove)
            found = _last_logits(self.model, self.table["clean"]).double().log_softmax(-1)
        row = torch.arange(len(found))
        values = found[row, self.table["target"]]
        if self.metric == "log_prob_difference":
            values = values - found[row, self.table["distractor"]]
        return float(values.mean())


def effects(model: Any, task: Task, kind: str, heads: int, metric: str = "log_prob_difference") -> tuple[float, Tensor]:
    """Return the mean metric, and by how much replacing each head lowers it, [layers, heads]."""
    ablation = Ablation(model, task, kind, heads, metric)
    none = torch.zeros(len(ablation.sites), heads, dtype=torch.bool)
    full = ablation.value(none)
    found = torch.zeros(none.shape)
    for layer, head in torch.ones_like(none).nonzero().tolist():
        one = none.clone()
        one[layer, head] = True
        found[layer, head] = full - ablation.value(one)
    return full, found


@torch.no_grad()
def _last_logits(model: Any, ids: Tensor) -> Tensor:
    return model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[:, -1]
