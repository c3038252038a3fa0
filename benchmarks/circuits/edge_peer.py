"""EAP-IG at the level of edges, through TransformerLens: the algorithm as published (Hanna et al., 2403.17806).

After `attribute.py` of its authors' repository (hannamw/EAP-IG), with the paper's points k/m, k = 1 … m: the outputs of
the embeddings, of every head and of every feed-forward layer are kept as differences between counterfactual and clean
prompt, [batch, positions, sources, width]; in each backward pass they are multiplied with the gradient at the queries',
keys' and values' inputs of every head, at every feed-forward layer's and at the last residual stream. An edge is a
source and a later input; what all edges out of a head score together is the head's score.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.circuits.shapes import Prompts


def keep_end(ends: list[Tensor], value: Tensor, hook: Any) -> None:
    """Keep one end of the line that the embeddings take."""
    ends.append(value.detach().clone())


class EdgePeer:
    """A model in TransformerLens, hooked as EAP-IG hooks it.

    Args:
        model: A transformers model, which is copied.
        tokenizer: Its tokenizer; without one TransformerLens looks for one at the hub.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        from transformer_lens.model_bridge import TransformerBridge

        self.bridge = TransformerBridge.boot_transformers(
            "local", hf_model=copy.deepcopy(model), tokenizer=copy.deepcopy(tokenizer), device="cpu"
        )
        self.bridge.eval()
        self.bridge.set_use_attn_result(True)
        self.bridge.set_use_split_qkv_input(True)
        self.bridge.set_use_hook_mlp_in(True)
        self.layers, self.heads = self.bridge.cfg.n_layers, self.bridge.cfg.n_heads
        self.width = self.bridge.cfg.d_model
        self.per_layer = self.heads + 1
        self.sources = 1 + self.layers * self.per_layer

    def eap_ig(self, prompts: Prompts, steps: int) -> Tensor:
        """Score every edge, and return the sum over those out of each head: [layers, heads]."""
        clean, counterfactual = torch.tensor(prompts.clean), torch.tensor(prompts.counterfactual)
        difference = torch.zeros(*clean.shape, self.sources, self.width)
        inputs = self._inputs()
        scores = torch.zeros(self.sources, sum(count for _, _, count in inputs))

        def keep(value: Tensor, hook: Any, where: int | slice, sign: int) -> None:
            difference[:, :, where] += sign * value.detach()

        def score(gradient: Tensor, hook: Any, before: int, column: int) -> None:
            wide = gradient.detach() if gradient.dim() == 4 else gradient.detach().unsqueeze(2)
            product = torch.einsum("btfd,btgd->fg", difference[:, :, :before], wide)
            scores[:before, column : column + wide.shape[2]] += product

        ends: list[Tensor] = []
        with torch.inference_mode():
            for ids, sign in ((counterfactual, -1), (clean, 1)):
                sites = [(name, partial(keep, where=where, sign=sign)) for name, where in self._outputs()]
                with self.bridge.hooks(fwd_hooks=[("hook_embed", partial(keep_end, ends)), *sites]):
                    self.bridge(ids)
        start, end = (value.clone() for value in ends)
        backward, column = [], 0
        for name, before, count in inputs:
            backward.append((name, partial(score, before=before, column=column)))
            column += count
        for step in range(1, steps + 1):
            point = (start + step / steps * (end - start)).requires_grad_(True)
            with self.bridge.hooks(
                fwd_hooks=[("hook_embed", lambda value, hook, point=point: point)], bwd_hooks=backward
            ):
                logits = self.bridge(clean)
                rows = torch.arange(len(logits))
                (logits[rows, -1, prompts.targets] - logits[rows, -1, prompts.distractors]).sum().backward()
        self.bridge.zero_grad(set_to_none=True)
        of_heads = scores.sum(1)[1:].view(self.layers, self.per_layer)[:, : self.heads]
        return of_heads / (steps * len(clean))

    def _outputs(self) -> list[tuple[str, int | slice]]:
        """Every source's hook and its place."""
        found: list[tuple[str, int | slice]] = [("hook_embed", 0)]
        for layer in range(self.layers):
            first = 1 + layer * self.per_layer
            found.append((f"blocks.{layer}.attn.hook_result", slice(first, first + self.heads)))
            found.append((f"blocks.{layer}.hook_mlp_out", first + self.heads))
        return found

    def _inputs(self) -> list[tuple[str, int, int]]:
        """Every input's hook, how many sources come before it, and how many inputs it holds."""
        shared = self.bridge.cfg.n_key_value_heads or self.heads
        found = []
        for layer in range(self.layers):
            first = 1 + layer * self.per_layer
            found.append((f"blocks.{layer}.hook_q_input", first, self.heads))
            found += [(f"blocks.{layer}.hook_{name}_input", first, shared) for name in "kv"]
            found.append((f"blocks.{layer}.hook_mlp_in", first + self.heads, 1))
        return [*found, (f"blocks.{self.layers - 1}.hook_resid_post", self.sources, 1)]
