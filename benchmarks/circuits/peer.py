"""EAP-IG at the level of nodes, through TransformerLens: what a user has without this project.

The algorithm is that of `attribute_node.py` in its authors' repository (hannamw/EAP-IG): the difference of every
head's output between counterfactual and clean prompt is kept, batch × positions × nodes × width; then, at `steps`
points from the counterfactual's embeddings to the clean prompt's, the last one included, a backward pass of the metric
multiplies it with the gradient at every node. Nodes other than heads are left out, which spares the peer some work.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.circuits.shapes import Prompts


class Peer:
    """A model in TransformerLens.

    Args:
        model: A transformers model, which is copied.
        tokenizer: Its tokenizer; without one TransformerLens looks for one at the hub.
        result: Hook every head's output in the residual stream, as EAP-IG does, [B, T, heads, width]; or else the
            input of the output projection, [B, T, heads, head_dim], which gives the same products in less memory.
        frozen: Take no gradient of the weights, which EAP-IG's own code does take.
    """

    def __init__(self, model: Any, tokenizer: Any, *, result: bool = True, frozen: bool = False) -> None:
        from transformer_lens.model_bridge import TransformerBridge

        self.bridge = TransformerBridge.boot_transformers(
            "local", hf_model=copy.deepcopy(model), tokenizer=copy.deepcopy(tokenizer), device="cpu"
        )
        self.bridge.eval()
        self.bridge.set_use_attn_result(result)
        if frozen:
            # Gradients reach the heads through the embeddings, which stay differentiable.
            self.bridge.requires_grad_(False)
        self.layers, self.heads = self.bridge.cfg.n_layers, self.bridge.cfg.n_heads
        site = "attn.hook_result" if result else "attn.hook_z"
        self.sites = [f"blocks.{layer}.{site}" for layer in range(self.layers)]

    def eap_ig(self, prompts: Prompts, steps: int) -> Tensor:
        """Score every head: [layers, heads], in units of the metric, logit of the target less the distractor's."""
        clean, counterfactual = torch.tensor(prompts.clean), torch.tensor(prompts.counterfactual)
        difference: list[Any] = [0.0] * self.layers  # [B, T, heads, width] each, once both prompts are read
        scores = torch.zeros(self.layers, self.heads)
        embeddings: list[Tensor] = []

        def keep(value: Tensor, hook: Any, layer: int, sign: int) -> None:
            difference[layer] = difference[layer] + sign * self._by_head(value.detach())

        def keep_embeddings(value: Tensor, hook: Any) -> None:
            embeddings.append(value.detach().clone())

        def score(gradient: Tensor, hook: Any, layer: int) -> None:
            scores[layer] += torch.einsum("bthd,bthd->h", difference[layer], self._by_head(gradient.detach()))

        with torch.inference_mode():
            for ids, sign in ((counterfactual, -1), (clean, 1)):
                sites = [(name, partial(keep, layer=layer, sign=sign)) for layer, name in enumerate(self.sites)]
                with self.bridge.hooks(fwd_hooks=[("hook_embed", keep_embeddings), *sites]):
                    self.bridge(ids)
        start, end = (value.clone() for value in embeddings)
        for step in range(1, steps + 1):
            point = (start + step / steps * (end - start)).requires_grad_(True)
            with self.bridge.hooks(
                fwd_hooks=[("hook_embed", lambda value, hook, point=point: point)],
                bwd_hooks=[(name, partial(score, layer=layer)) for layer, name in enumerate(self.sites)],
            ):
                self._metric(self.bridge(clean), prompts).backward()
        self.bridge.zero_grad(set_to_none=True)
        return scores / (steps * len(prompts.clean))

    def _by_head(self, value: Tensor) -> Tensor:
        return value if value.dim() == 4 else value.unflatten(-1, (self.heads, -1))

    def _metric(self, logits: Tensor, prompts: Prompts) -> Tensor:
        rows = torch.arange(len(logits))
        return (logits[rows, -1, prompts.targets] - logits[rows, -1, prompts.distractors]).sum()
