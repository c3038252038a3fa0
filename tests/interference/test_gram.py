"""Gram matrices of per-sample gradients: those of the gradients themselves."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from rlforget.errors import ConfigError, EmptyDomainError, NonFiniteError, ParameterError
from rlforget.interference import gram as module_under_test
from rlforget.interference.completions import completion_log_probs
from rlforget.interference.gram import LayerGradients, cross_gram, sample_gram

from .conftest import tiny_model
from .test_sample_gradients import PARTS, Toy

Batch = dict[str, Tensor]


def tiny_gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=13,
        n_positions=16,
        n_embd=16,
        n_layer=2,
        n_head=2,
        initializer_range=0.3,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
    )
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


MODELS: dict[str, Callable[[], nn.Module]] = {
    "qwen2, tied": lambda: tiny_model(tied=True),
    "qwen2, untied": lambda: tiny_model(tied=False),
    "gpt2": tiny_gpt2,
}


def true_gradients(
    model: nn.Module, batches: list[Batch], names: list[str] | None = None, dtype: torch.dtype = torch.float64
) -> Tensor:
    """One row a completion, float64, by a backward pass each that computes in `dtype`."""
    model = model.to(dtype).eval()
    parameters = [p for name, p in model.named_parameters() if names is None or name in names]
    rows = []
    for batch in batches:
        for sample in range(len(batch["input_ids"])):
            one = {name: value[sample : sample + 1] for name, value in batch.items()}
            gradients = torch.autograd.grad(completion_log_probs(model, one).sum(), parameters, allow_unused=True)
            rows.append(
                torch.cat(
                    [
                        (torch.zeros_like(p) if g is None else g).flatten()
                        for p, g in zip(parameters, gradients, strict=True)
                    ]
                )
            )
    model.float()
    return torch.stack(rows).double()


def relative_error(found: Tensor, rows: Tensor, columns: Tensor) -> float:
    """The largest error in units of the two gradients' lengths."""
    lengths = rows.norm(dim=1)[:, None] * columns.norm(dim=1)
    return float(((found - rows @ columns.T).abs() / lengths).max())


@pytest.mark.parametrize("block", [2, 3, 64])
@pytest.mark.parametrize("name", MODELS)
def test_equals_the_gram_matrix_of_the_gradients(
    name: str, block: int, completions: Callable[..., list[Batch]], untouched: Callable[..., Any]
) -> None:
    model = MODELS[name]().train()
    batches = completions(7)
    rows = true_gradients(model, batches)
    model.train()
    check = untouched(model)
    found = sample_gram(model, batches, block=block)
    assert found.dtype is torch.float64
    assert found.shape == (7, 7)
    assert relative_error(found, rows, rows) < 2e-6
    assert torch.equal(found, found.T)
    check()


@pytest.mark.parametrize("name", MODELS)
def test_no_parameter_needs_a_backward_pass_a_sample(name: str, completions: Callable[..., list[Batch]]) -> None:
    layers = LayerGradients(MODELS[name]())
    layers.capture(completions(4)[0])
    assert not layers.looped


@pytest.mark.parametrize("name", MODELS)
def test_two_sets_of_samples(name: str, completions: Callable[..., list[Batch]]) -> None:
    model = MODELS[name]()
    left, right = completions(5), completions(6, seed=1, width=11, batch_size=3)
    rows, columns = true_gradients(model, left), true_gradients(model, right)
    found = cross_gram(model, left, right, block=2)
    assert relative_error(found, rows, columns) < 2e-6


def test_blocks_do_not_matter(completions: Callable[..., list[Batch]]) -> None:
    model, batches = tiny_model(), completions(6)
    one, all_at_once = (sample_gram(model, batches, block=block) for block in (1, 6))
    torch.testing.assert_close(one, all_at_once, rtol=1e-5, atol=1e-6 * float(one.diagonal().max()))


def test_only_some_parameters(completions: Callable[..., list[Batch]]) -> None:
    model, batches = tiny_model(), completions(4)
    names = [name for name, _ in model.named_parameters() if "mlp" in name]
    rows = true_gradients(model, batches, names)
    found = sample_gram(model, batches, only=lambda name: "mlp" in name)
    assert relative_error(found, rows, rows) < 2e-6
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
    assert torch.equal(sample_gram(model, batches), found)


def test_a_model_of_half_precision(completions: Callable[..., list[Batch]]) -> None:
    """In bfloat16 the activations differ; that the products are the kernel's is what counts."""
    model, batches = tiny_model().bfloat16(), completions(4)
    found = sample_gram(model, batches)
    rows = true_gradients(model.float(), batches)
    assert relative_error(found, rows, rows) < 0.05


@pytest.mark.parametrize("part", PARTS)
def test_every_kind_of_layer(part: str, completions: Callable[..., list[Batch]]) -> None:
    """Modules that no rule knows, or that do other than they seem, take a pass a sample, for themselves alone."""
    make, known = PARTS[part]
    torch.manual_seed(0)
    model = Toy(make())
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    batches = completions(5)
    rows = true_gradients(model, batches)
    found = sample_gram(model, batches, block=3)
    assert relative_error(found, rows, rows) < 2e-6
    layers = LayerGradients(model)
    layers.capture(batches[0])
    assert (not layers.looped) == known
    assert all(name.startswith("middle") for name in layers.looped)


class Tied(nn.Module):
    """Uses its embedding's weight outside of any module."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(13, 8)
        self.middle = nn.Linear(8, 8)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        hidden = self.middle(self.embed(input_ids)).tanh()
        return type("Output", (), {"logits": nn.functional.linear(hidden, self.embed.weight)})


def test_a_weight_used_outside_its_module(completions: Callable[..., list[Batch]]) -> None:
    torch.manual_seed(0)
    model, batches = Tied(), completions(5)
    rows = true_gradients(model, batches)
    assert relative_error(sample_gram(model, batches), rows, rows) < 2e-6
    layers = LayerGradients(model)
    layers.capture(batches[0])
    assert layers.looped == {"embed.weight"}


def test_a_large_parameter_without_a_rule_is_named(
    completions: Callable[..., list[Batch]], monkeypatch: pytest.MonkeyPatch, untouched: Callable[..., Any]
) -> None:
    monkeypatch.setattr(module_under_test, "_BYTES_AT_ONCE", 1000)
    model = Tied()
    check = untouched(model)
    with pytest.raises(ParameterError, match=r"'embed.weight'.*104 entries.*only="):
        sample_gram(model, completions(5))
    check()
    sample_gram(model, completions(5), only=lambda name: name != "embed.weight")


class LargestTensor(TorchDispatchMode):
    """Watches every tensor that an operator makes."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result


def test_no_gradient_of_a_sample_is_made(completions: Callable[..., list[Batch]]) -> None:
    """Nothing of samples x parameters, and after the check nothing as large as even one wide parameter."""
    torch.manual_seed(0)
    model = Toy(nn.Sequential(nn.Linear(8, 512), nn.Tanh(), nn.Linear(512, 8)))
    batches = completions(4)
    layers = LayerGradients(model)
    layers.capture(batches[0])
    largest = LargestTensor()
    with largest:
        layers.gram(layers.capture(batches[0]))
    assert largest.numel <= 4 * 9 * 512  # an activation
    assert 4 * sum(p.numel() for p in model.parameters()) > 4 * 9 * 512


def test_two_blocks_of_activations_are_held_at_most(
    completions: Callable[..., list[Batch]], monkeypatch: pytest.MonkeyPatch
) -> None:
    captured: list[weakref.ref[Any]] = []
    most = 0
    original = LayerGradients._capture

    def capture(self: LayerGradients, block: Batch) -> Any:
        nonlocal most
        most = max(most, sum(one() is not None for one in captured))
        found = original(self, block)
        captured.append(weakref.ref(found["model.layers.0.mlp.up_proj.weight"][0]))
        return found

    monkeypatch.setattr(LayerGradients, "_capture", capture)
    sample_gram(tiny_model(), completions(6, batch_size=6), block=1)
    assert most <= 1  # while the next one is captured
    assert len(captured) == 1 + 6 * 7 // 2  # the check, then blocks x (blocks + 1) / 2 passes


def test_samples_are_those_asked_for(completions: Callable[..., list[Batch]]) -> None:
    model, batches = tiny_model(), completions(9)
    whole = sample_gram(model, batches, block=4)
    torch.testing.assert_close(sample_gram(model, batches, samples=5, block=4), whole[:5, :5], rtol=1e-6, atol=1e-6)


def test_prompts_are_completed_once(completions: Callable[..., list[Batch]]) -> None:
    """Every pass must see the same completions."""
    model = tiny_model()
    prompts = [
        {"input_ids": batch["input_ids"][:, 2:6], "attention_mask": torch.ones(len(batch["input_ids"]), 4).long()}
        for batch in completions(4)
    ]
    found = sample_gram(model, prompts, block=1, seed=3)
    assert torch.equal(found, found.T)
    assert torch.linalg.eigvalsh(found).min() > -1e-6 * found.diagonal().max()
    assert torch.equal(found, sample_gram(model, prompts, block=1, seed=3))


def test_a_broken_weight_is_named(completions: Callable[..., list[Batch]]) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.get_parameter("lm_head.weight")[3, 3] = math.inf
    with pytest.raises(NonFiniteError, match="gradient of 'model"):
        sample_gram(model, completions(3))


def test_bad_input(completions: Callable[..., list[Batch]]) -> None:
    model, batches = tiny_model(), completions(3)
    with pytest.raises(ConfigError, match="block"):
        sample_gram(model, batches, block=0)
    with pytest.raises(ConfigError, match="samples"):
        sample_gram(model, batches, samples=0)
    with pytest.raises(ConfigError, match="at least one parameter"):
        sample_gram(model, batches, only=lambda name: False)
    with pytest.raises(EmptyDomainError):
        sample_gram(model, [])
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ConfigError, match="none that requires a gradient"):
        sample_gram(model, batches)
