"""Exact activation patching: replace one head at a time and see what it costs, many heads in one forward.

The rows of a forward are copies of the batch, each with another head of one layer replaced. What the replacement cannot
change is not run again: the layers below that one, which halves the work, and the tokens before the first that differs
between the two prompts or, with `positions="last"`, all but the last.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlforget.circuits.heads import Edit
from rlforget.circuits.methods.result import MethodResult
from rlforget.circuits.replay import Replay
from rlforget.circuits.trial import Trial
from rlforget.counting import counted
from rlforget.errors import ConfigError


@torch.no_grad()
def score(
    trial: Trial, seed: int, *, tokens_at_once: int = 512, skip_layers: bool = True, skip_tokens: bool = True
) -> MethodResult:
    """Score each head by F(clean) − F(clean with that head replaced), averaged over prompts.

    Args:
        trial: The model and its task.
        seed: Not used: nothing is drawn.
        tokens_at_once: Tokens in a forward, copies included; more is faster until memory or the cache is full.
        skip_layers: Do not run the layers below the replaced head again, where the model allows it.
        skip_tokens: Nor the tokens before those that the replacement changes, where the model allows it.
    """
    if tokens_at_once < 1:
        raise ConfigError("tokens_at_once", expected="at least 1", found=repr(tokens_at_once), fix="Use 512.")
    replay = Replay(trial, skip_layers=skip_layers, skip_tokens=skip_tokens)
    layers, heads = trial.sites.shape
    found = []
    for number, batch in enumerate(counted("pairs", trial.batches, size=len)):
        replacement, where, clean = trial.replacement(number), trial.where(number), replay.read(number)
        where = where[:, replay.start :]
        effects = torch.empty(len(batch), layers, heads)
        at_once = max(1, tokens_at_once // where.numel())
        for layer, source in enumerate(replacement):
            source = source[:, replay.start :] if source.shape[1] > 1 else source
            for first in range(0, heads, at_once):
                chosen = range(first, min(first + at_once, heads))
                patched = replay.edited(layer, len(chosen), _one_head_a_copy(chosen, source, where))
                effects[:, layer, first : chosen.stop] = (clean - patched).T.cpu()
        found.append(effects)
    per_prompt = torch.cat(found)
    settings = {
        "tokens_at_once": tokens_at_once,
        "skip_layers": replay.skip_layers,
        "skip_tokens": replay.skip_tokens,
    }
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
