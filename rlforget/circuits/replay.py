"""The clean prompts run again from one layer and one token on: what lies before them is kept from one whole forward.

Replacing a head's output in some layer leaves the layers below as they were, and in a causal model it leaves all
tokens before the first that is replaced by something else as they were. So the layers below give their outputs
again, and of the tokens before only the keys and values are needed. Both are exact but for rounding; whether a model
allows them is tried before they are used. In 16 bits the rounding of another shape may fail that trial, and then all
tokens are run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rlforget.circuits.forward import answer_logits
from rlforget.circuits.heads import Edit
from rlforget.circuits.past import Past, remembered
from rlforget.circuits.trial import Trial


class Replay:
    """Runs copies of a batch with edits in one layer.

    Args:
        trial: The model and its task.
        skip_layers: Do not run the layers below the edited one, where the model allows it.
        skip_tokens: Nor the tokens before the first one that an edit may change, where the model allows it.

    Attributes:
        skip_layers: Whether layers are left out; certain after the first `read`.
        skip_tokens: Whether tokens are; certain after the first batch in which they could be.
        start: The first token of the batch that is run.
    """

    def __init__(self, trial: Trial, *, skip_layers: bool, skip_tokens: bool) -> None:
        self.trial = trial
        self.skip_layers = skip_layers and bool(trial.sites.blocks)
        self.skip_tokens = skip_tokens
        self.start = 0
        self._number = 0
        self._past: Past | None = None
        self._outputs: list[Any] = [None] * trial.sites.layers
        self._tried = {"layers": False, "tokens": False}

    def read(self, number: int) -> Tensor:
        """Run a batch's clean prompts and keep what later runs need; return their metric, [B]."""
        trial, batch = self.trial, self.trial.batches[number]
        self._number, self._past, self.start = number, None, 0
        with ExitStack() as hooks:
            for layer, block in enumerate(trial.sites.blocks if self.skip_layers else []):

                def keep(module: nn.Module, args: Any, output: Any, layer: int = layer) -> None:
                    self._outputs[layer] = output

                hooks.callback(block.register_forward_hook(keep).remove)
            clean = trial.metric(answer_logits(trial.model, batch), batch)
        trial.note_clean(number, clean)
        if self.skip_layers and not self._tried["layers"]:
            self._tried["layers"], self.skip_layers = True, self._agrees(clean)
        first = first_changed_token(trial, number)
        if self.skip_tokens and first:
            self._remember(first)
            if not self._tried["tokens"]:
                self._tried["tokens"], self.skip_tokens = True, self._past is not None and self._agrees(clean)
            if not self.skip_tokens:
                self._past, self.start = None, 0
        return clean

    def edited(self, layer: int, copies: int, edit: Edit) -> Tensor:
        """Run copies of the batch that was read, with an edit of one layer's heads.

        Args:
            layer: The layer.
            copies: How many.
            edit: From the layer's number and its heads' outputs [copies · B, T − start, heads, head_dim] to what the
                layer is to go on with.

        Returns:
            The metric [copies, B].
        """
        trial = self.trial
        batch = trial.batches[self._number].repeat(copies)
        below = layer if self.skip_layers else 0
        past = None if self._past is None else Past(self._past.layers, first=below)
        with trial.sites.edited(edit, layers=[layer]), self._skipping(below, copies):
            values = trial.metric(answer_logits(trial.model, batch, past=past), batch)
        return values.view(copies, -1)

    def _remember(self, first: int) -> None:
        batch = self.trial.batches[self._number]
        try:
            self._past = remembered(self.trial.model, batch.clean_ids, batch.attention_mask, first)
        except Exception:  # a trial: a model may lack a cache, or the parts of a plain one, in any way
            self._past = None
        self.start = 0 if self._past is None else first

    def _agrees(self, clean: Tensor) -> bool:
        last = self.trial.sites.layers - 1
        for layer in {min(1, last), last // 2, last}:
            try:
                again = self.edited(layer, 2, lambda _, z: z)
            except Exception:  # a trial: whatever layers share beside their input, they may miss it in any way
                return False
            if not torch.allclose(again, clean.expand_as(again), rtol=1e-4, atol=1e-5):
                return False
        return True

    @contextmanager
    def _skipping(self, below: int, copies: int) -> Iterator[None]:
        """Let the layers below one give the outputs that were kept, so many times over."""
        with ExitStack() as restore:
            for layer, block in enumerate(self.trial.sites.blocks[:below]):
                # Only the last one's output is read.
                output = self._repeated(self._outputs[layer], copies) if layer == below - 1 else self._outputs[layer]
                restore.callback(_put_back, block, block.__dict__.get("forward"))
                block.forward = lambda *_, output=output, **__: output
            yield

    def _repeated(self, output: Any, copies: int) -> Any:
        if isinstance(output, Tensor):
            return output[:, self.start :].repeat(copies, *[1] * (output.dim() - 1))
        if isinstance(output, tuple):
            return tuple(self._repeated(part, copies) for part in output)
        return output


def first_changed_token(trial: Trial, number: int) -> int:
    """Return the first place in any row of a batch whose outputs a replacement can change.

    Where the source is the counterfactual prompt, the tokens before the first that differs have the same outputs there.
    """
    batch, changed = trial.batches[number], trial.where(number)
    if trial.ablation == "resample":
        changed = changed & ((batch.clean_ids != batch.source_ids).cumsum(1) > 0)
    columns = changed.any(0).nonzero()
    first = int(columns[0]) if len(columns) else changed.shape[1]
    return min(first, changed.shape[1] - batch.kept)  # all that predicts an answer is run


def _put_back(block: nn.Module, forward: Any) -> None:
    if forward is None:
        del block.__dict__["forward"]
    else:
        block.__dict__["forward"] = forward
