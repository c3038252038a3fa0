"""Exact activation patching: replace one head at a time and see what it costs, many heads in one forward.

The rows of a forward are copies of the batch, each with another head of one layer replaced. The layers below that one
give what they gave before, so they are not run again: their output on the clean prompts is kept. So a model of L layers
costs about half of L · heads forwards, in few large ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rlforget.circuits.ablation import Positions, Sources
from rlforget.circuits.forward import answer_logits
from rlforget.circuits.heads import Edit, HeadSites
from rlforget.circuits.methods.result import MethodResult
from rlforget.circuits.metrics import Metric
from rlforget.circuits.task import TaskBatch
from rlforget.errors import ConfigError


@torch.no_grad()
def score(
    model: nn.Module,
    sites: HeadSites,
    batches: Sequence[TaskBatch],
    metric: Metric,
    ablation: str,
    positions: Positions,
    seed: int,
    *,
    tokens_at_once: int = 1024,
    skip_layers: bool = True,
) -> MethodResult:
    """Score each head by F(clean) − F(clean with that head replaced), averaged over prompts.

    Args:
        tokens_at_once: Tokens in a forward, copies included; more is faster until memory or the cache is full.
        skip_layers: Do not run the layers below the replaced head again, where the model allows it.
    """
    if tokens_at_once < 1:
        raise ConfigError("tokens_at_once", expected="at least 1", found=repr(tokens_at_once), fix="Use 4096.")
    sources = Sources(model, sites, batches, ablation, positions)
    skipper = LayerSkipper(sites) if skip_layers and sites.blocks else None
    layers, heads = sites.shape
    found = []
    for batch in batches:
        replacement, where = sources.of(batch), sources.replaced(batch)
        if skipper is None:
            clean = metric(answer_logits(model, batch), batch)
        else:
            clean, skipper = skipper.read(model, batch, metric)
        effects = torch.empty(len(batch), layers, heads)
        at_once = max(1, tokens_at_once // batch.clean_ids.numel())
        for layer in range(layers):
            for first in range(0, heads, at_once):
                chosen = range(first, min(first + at_once, heads))
                with ExitStack() as stack:
                    edit = _one_head_a_copy(chosen, replacement[layer], where)
                    stack.enter_context(sites.edited(edit, layers=[layer]))
                    if skipper is not None:
                        stack.enter_context(skipper.skipping(layer, len(chosen)))
                    copies = batch.repeat(len(chosen))
                    patched = metric(answer_logits(model, copies), copies).view(len(chosen), len(batch))
                effects[:, layer, first : chosen.stop] = (clean - patched).T.cpu()
        found.append(effects)
    per_prompt = torch.cat(found)
    settings = {"tokens_at_once": tokens_at_once, "skip_layers": skipper is not None}
    return MethodResult(per_prompt.mean(0, dtype=torch.float64).float(), None, settings, per_prompt)


def _one_head_a_copy(heads: range, source: Tensor, where: Tensor) -> Edit:
    """Return the edit that replaces another head of a layer in each copy of the batch."""

    def edit(layer: int, z: Tensor) -> Tensor:
        copies = z.view(len(heads), *where.shape, *z.shape[2:]).clone()  # [copies, B, T, heads, head_dim]
        width = source.shape[2]
        for copy, head in enumerate(heads):
            old = copies[copy, :, :, head]
            copies[copy, :, :, head] = torch.where(where[..., None], source[:, :, min(head, width - 1)], old)
        return copies.flatten(0, 1)

    return edit


class LayerSkipper:
    """Lets layers below a given one return what they returned before."""

    def __init__(self, sites: HeadSites) -> None:
        self.sites = sites
        self._outputs: list[Any] = [None] * sites.layers
        self._checked = False

    def read(self, model: nn.Module, batch: TaskBatch, metric: Metric) -> tuple[Tensor, LayerSkipper | None]:
        """Run the clean prompts and keep each layer's output.

        Returns:
            The metric [B], and self; or None where skipping changes it, because layers share more than their input.
        """
        with ExitStack() as hooks:
            for layer, block in enumerate(self.sites.blocks):

                def keep(module: nn.Module, args: Any, output: Any, layer: int = layer) -> None:
                    self._outputs[layer] = output

                hooks.callback(block.register_forward_hook(keep).remove)
            clean = metric(answer_logits(model, batch), batch)
        if not self._checked:
            self._checked = True
            if not self._agrees(model, batch, metric, clean):
                return clean, None
        return clean, self

    def _agrees(self, model: nn.Module, batch: TaskBatch, metric: Metric, clean: Tensor) -> bool:
        last = self.sites.layers - 1
        for layer in {min(1, last), last // 2, last}:
            try:
                with self.skipping(layer, 1):
                    again = metric(answer_logits(model, batch), batch)
            except Exception:  # a trial: whatever layers share, they may miss it in any way
                return False
            if not torch.allclose(again, clean, rtol=1e-4, atol=1e-5):
                return False
        return True

    @contextmanager
    def skipping(self, below: int, copies: int) -> Iterator[None]:
        """Run only the layers from `below` on; the ones before it give the kept output, `copies` times over."""
        with ExitStack() as restore:
            for layer, block in enumerate(self.sites.blocks[:below]):
                # Only the last one's output is read.
                output = _repeated(self._outputs[layer], copies) if layer == below - 1 else self._outputs[layer]
                restore.callback(_put_back, block, block.__dict__.get("forward"))
                block.forward = lambda *_, output=output, **__: output
            yield


def _put_back(block: nn.Module, forward: Any) -> None:
    if forward is None:
        del block.__dict__["forward"]
    else:
        block.__dict__["forward"] = forward


def _repeated(output: Any, copies: int) -> Any:
    if isinstance(output, Tensor):
        return torch.cat([output] * copies)
    if isinstance(output, tuple):
        return tuple(_repeated(part, copies) for part in output)
    return output
