"""Inner products of per-sample gradients over all of a model's parameters, without a gradient being stored.

The gradient that a sample gives to a layer is a product of the layer's inputs and the gradients at its outputs, and so
are inner products of gradients: `gradient_gram` takes them from these factors, layer by layer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rlforget.errors import ConfigError, NonFiniteError, ParameterError
from rlforget.interference.completions import Batches, collect, completed, completion_log_probs
from rlforget.interference.gradient_factors import Factors, Rule, add_gram_, factors_rule_for, whole
from rlforget.interference.sample_gradients import layer_calls, measuring
from rlforget.weights.sharding import check_unsharded

logger = logging.getLogger(__name__)

Block = Mapping[str, Tensor]
Captured = dict[str, list[Factors]]

_BYTES_AT_ONCE = 1 << 30  # float32 gradients of a parameter without a rule, of one block


def sample_gram(
    model: nn.Module,
    batches: Batches,
    *,
    samples: int = 256,
    only: Callable[[str], bool] | None = None,
    block: int = 16,
    seed: int = 0,
    tokenizer: Any = None,
) -> Tensor:
    """Return the inner products of the gradients of log π(completion | prompt), over all trainable parameters.

    Args:
        model: A transformers causal language model. Its parameters' `grad` and `requires_grad` are left as found.
        batches: A domain, its name, or prompts or completions, see `Batches`; one row of the result a completion.
        samples: How many completions to take at most.
        only: Says of a parameter's name whether it counts. By default all that require gradients do.
        block: Samples whose activations are held at once; two blocks are. With n = b · block samples, each goes through
            the model (b + 1) / 2 times on average, so the largest block that memory allows is the fastest.
        seed: Seed of prompts and completions.
        tokenizer: Encodes a domain's prompts; by default the one in the model's folder.

    Returns:
        float64 [n, n], on the CPU: entry (a, b) is g_a · g_b.

    Raises:
        ConfigError: `block` or `samples` is out of range, or no parameter counts.
        EmptyDomainError: There is no sample.
        NonFiniteError: A gradient is NaN or infinite; the message names the parameter.
        ParameterError: A large parameter is used in a way that no rule knows; the message names it.
    """
    layers = LayerGradients(model, only)
    blocks = _blocks(model, batches, samples=samples, block=block, seed=seed, tokenizer=tokenizer)
    ends = _ends(blocks)
    gram = torch.zeros(ends[-1], ends[-1], dtype=torch.float64)
    for i, first in enumerate(blocks):
        held = layers.capture(first)
        rows = slice(ends[i], ends[i + 1])
        gram[rows, rows] = layers.gram(held)
        for j in range(i):
            columns = slice(ends[j], ends[j + 1])
            gram[rows, columns] = layers.gram(held, layers.capture(blocks[j]))
            gram[columns, rows] = gram[rows, columns].T
    return gram


def cross_gram(
    model: nn.Module,
    batches: Batches,
    others: Batches,
    *,
    samples: int = 256,
    only: Callable[[str], bool] | None = None,
    block: int = 16,
    seed: int = 0,
    tokenizer: Any = None,
) -> Tensor:
    """Return the inner products of the gradients of one set of samples with those of another.

    Arguments and errors are those of `sample_gram`; `samples` counts for either set. The samples of `batches` go
    through the model once, those of `others` once for each block of them.

    Returns:
        float64 [n, m], on the CPU.
    """
    layers = LayerGradients(model, only)
    settings = {"samples": samples, "block": block, "seed": seed, "tokenizer": tokenizer}
    left, right = (_blocks(model, one, **settings) for one in (batches, others))
    rows, columns = _ends(left), _ends(right)
    gram = torch.zeros(rows[-1], columns[-1], dtype=torch.float64)
    for i, first in enumerate(left):
        held = layers.capture(first)
        for j, second in enumerate(right):
            found = layers.gram(held, layers.capture(second))
            gram[rows[i] : rows[i + 1], columns[j] : columns[j + 1]] = found
    return gram


def _blocks(model: nn.Module, batches: Batches, *, samples: int, block: int, seed: int, tokenizer: Any) -> list[Block]:
    """Take the completions of `batches`, sampled once, in blocks."""
    if block < 1:
        raise ConfigError("block", expected="at least 1", found=str(block), fix="Hold one sample or more.")
    taken = collect(model, batches, samples=samples, seed=seed, tokenizer=tokenizer)
    return [part for batch in completed(model, taken, seed=seed, tokenizer=tokenizer) for part in _cut(batch, block)]


def _cut(batch: Block, block: int) -> Iterator[Block]:
    for start in range(0, batch["input_ids"].shape[0], block):
        yield {name: value[start : start + block] for name, value in batch.items()}


def _ends(blocks: list[Block]) -> list[int]:
    """Return where each block's rows start, and where the last one's end."""
    ends = [0]
    for block in blocks:
        ends.append(ends[-1] + block["input_ids"].shape[0])
    return ends


class LayerGradients:
    """The gradients of log π(completion | prompt) of a block of samples, as the factors of every parameter.

    The first block is checked: the norm of two samples' summed gradient, for each parameter, must be that of one
    ordinary backward pass. A parameter for which it is not, because the model uses it in a way that no rule knows, and
    one of a module without a rule, take a backward pass a sample, for themselves alone.

    Args:
        model: A causal language model.
        only: Says of a parameter's name whether it counts. By default all that require gradients do.

    Attributes:
        model: The model.
        parameters: Those that count, by name.
        rules: For each module that owns some, its rule, and the parameters' full names by their own.
        looped: Those known to take a backward pass a sample.
    """

    def __init__(self, model: nn.Module, only: Callable[[str], bool] | None = None) -> None:
        check_unsharded(model, "a Gram matrix by layers")
        self.model = model
        self.parameters = {
            name: parameter
            for name, parameter in model.named_parameters()
            if (parameter.requires_grad if only is None else only(name))
        }
        if not self.parameters:
            raise ConfigError(
                "only",
                expected="at least one parameter that counts",
                found="none" if only else "none that requires a gradient",
                fix="Name parameters as model.named_parameters() does.",
            )
        self.looped: set[str] = set()
        self.rules = self._find_rules()
        self._checked = False

    def _find_rules(self) -> dict[nn.Module, tuple[Rule, dict[str, str]]]:
        """For each module that owns counted parameters: its rule, and the parameters' full names by their own."""
        names = {id(parameter): name for name, parameter in self.parameters.items()}
        rules: dict[nn.Module, tuple[Rule, dict[str, str]]] = {}
        for module in self.model.modules():
            own = {short: names[id(p)] for short, p in module._parameters.items() if id(p) in names}
            rule = factors_rule_for(module)
            if own and rule is not None:
                rules[module] = (rule, own)
            elif own:
                self.looped |= set(own.values())
        return rules

    def capture(self, block: Block) -> Captured:
        """Return the factors of every parameter that the completions of `block` depend on."""
        if not self._checked:
            self._checked = True
            self._check({name: value[:2] for name, value in block.items()})
        with measuring(self.model):
            return self._capture(block)

    def gram(self, left: Captured, right: Captured | None = None) -> Tensor:
        """Return the inner products of captured gradients, those of `left` with those of `right` or of `left` itself.

        Returns:
            float64 [n, m], on the CPU.
        """
        total = None
        for name, factors in left.items():
            others = None if right is None else right.get(name, [])
            rows, columns = factors, factors if others is None else others
            if not columns:
                continue
            shape = (rows[0].rows.shape[0], columns[0].rows.shape[0])
            part = torch.zeros(shape, dtype=torch.float64, device=rows[0].rows.device)
            add_gram_(part, factors, others)
            if not bool(part.isfinite().all()):
                raise NonFiniteError(
                    f"the gradient of {name!r}",
                    expected="finite numbers",
                    found=f"NaN or Inf for {int((~part.isfinite()).any(1).sum())} of {shape[0]} samples",
                    fix="Look for NaN or Inf in the weights, and for activations beyond the range of their dtype.",
                )
            total = part if total is None else total + part
        if total is None:
            raise ConfigError(
                "only",
                expected="parameters that the completions depend on",
                found="none of them does",
                fix="Count parameters that the forward pass uses.",
            )
        return total.cpu()

    def _capture(self, block: Block) -> Captured:
        captured: Captured = {}
        samples = block["input_ids"].shape[0]
        _, calls = layer_calls(self.model, self.rules, block)
        for module, given, gradient in calls:
            rule, own = self.rules[module]
            if given.shape[0] != samples or gradient.shape[0] != samples:  # its samples are not apart
                self.looped |= set(own.values())
                continue
            for short, factors in rule(module, given, gradient).items():
                if short in own:
                    captured.setdefault(own[short], []).append(factors)
        for name, gradients in self._one_by_one(block).items():
            captured[name] = [whole(gradients)]
        return captured

    def _one_by_one(self, block: Block) -> dict[str, Tensor]:
        """Take the gradients of the parameters that no rule serves, [B, *shape] float32, a backward pass a sample."""
        wanted = {name: self.parameters[name] for name in sorted(self.looped)}
        if not wanted:
            return {}
        samples = block["input_ids"].shape[0]
        for name, parameter in wanted.items():
            if 4 * samples * parameter.numel() > _BYTES_AT_ONCE:
                raise ParameterError(
                    f"the parameter {name!r}",
                    expected="an nn.Linear, nn.Embedding, Conv1D or norm that uses it alone",
                    found=f"{parameter.numel():,} entries used otherwise, too many to hold for {samples} samples",
                    fix="Give a smaller block=, or leave it out with only=.",
                )
        rows = {
            name: torch.zeros(samples, *parameter.shape, device=parameter.device) for name, parameter in wanted.items()
        }
        for parameter in wanted.values():
            parameter.requires_grad_(True)
        for sample in range(samples):
            one = {name: value[sample : sample + 1] for name, value in block.items()}
            log_prob = completion_log_probs(self.model, one).sum()
            gradients = torch.autograd.grad(log_prob, list(wanted.values()), allow_unused=True)
            for name, gradient in zip(wanted, gradients, strict=True):
                if gradient is not None:
                    rows[name][sample] = gradient
        for parameter in wanted.values():
            parameter.requires_grad_(False)
        return rows

    def _check(self, block: Block) -> None:
        with measuring(self.model):
            captured = self._capture(block)
            expected = _squared_norms(self.model, self.parameters, block)
        dtypes = {parameter.dtype for parameter in self.parameters.values()}
        loose = 2e-3 if dtypes <= {torch.float32, torch.float64} else 1e-1  # of squares
        floor = loose * 1e-2 * sum(expected.values())  # for gradients that vanish, such as that of a key's bias
        for name, square in expected.items():
            found = float(self.gram({name: captured[name]}).sum()) if name in captured else 0.0
            if abs(found - square) > loose * square + floor:
                logger.info("per-sample gradients of %s: one backward pass a sample", name)
                self.looped.add(name)


def _squared_norms(model: nn.Module, parameters: Mapping[str, nn.Parameter], block: Block) -> dict[str, float]:
    """Return ‖∇ Σ log π‖² for each parameter, of one backward pass that keeps no gradient."""
    squares = dict.fromkeys(parameters, 0.0)
    kept = {name: parameter.grad for name, parameter in parameters.items()}
    hooks = []

    def measure(name: str) -> Callable[[Tensor], None]:
        def hook(parameter: Tensor) -> None:
            assert parameter.grad is not None
            squares[name] = float(parameter.grad.double().square().sum())
            parameter.grad = None

        return hook

    try:
        for name, parameter in parameters.items():
            parameter.grad = None
            parameter.requires_grad_(True)
            handle = parameter.register_post_accumulate_grad_hook(measure(name))  # type: ignore[no-untyped-call]
            hooks.append(handle)
        completion_log_probs(model, block).sum().backward()  # type: ignore[no-untyped-call]
    finally:
        for handle in hooks:
            handle.remove()
        for name, parameter in parameters.items():
            parameter.requires_grad_(False)
            parameter.grad = kept[name]
    return squares
