"""A tiny model before and after a change, and completions to score."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from rlforget.delta import Delta, diff

Batch = dict[str, Tensor]


def tiny_model(seed: int = 0, *, tied: bool = True) -> nn.Module:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=13,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
        attention_dropout=0.1,
        initializer_range=0.3,
        pad_token_id=0,
        eos_token_id=1,
    )
    model = Qwen2ForCausalLM(config)
    with torch.no_grad():  # norms and biases start at constants, which would hide mistakes
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def perturbed(model: nn.Module, scale: float, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            keep = torch.rand(parameter.shape, generator=generator) < 0.5
            parameter.add_(scale * keep * torch.randn(parameter.shape, generator=generator))
    return other


@pytest.fixture
def before() -> nn.Module:
    return tiny_model()


@pytest.fixture
def after(before: nn.Module) -> nn.Module:
    return perturbed(before, 0.02, seed=1).train()


@pytest.fixture
def delta(before: nn.Module, after: nn.Module) -> Delta:
    return diff(before, after)


@pytest.fixture
def completions() -> Callable[..., list[Batch]]:
    """Left-padded completions of several lengths, some with padding after them."""

    def make(count: int, *, seed: int = 0, batch_size: int = 4, width: int = 9, vocabulary: int = 13) -> list[Batch]:
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(2, vocabulary, (count, width), generator=generator)
        mask, labels = torch.ones_like(ids), ids.clone()
        for row in range(count):
            start, end = row % 3, width - row % 2
            mask[row, :start] = 0
            mask[row, end:] = 0
            labels[row, : start + 3] = -100
            labels[row, end:] = -100
        ids[mask == 0] = 0
        whole = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        return [
            {name: value[start : start + batch_size] for name, value in whole.items()}
            for start in range(0, count, batch_size)
        ]

    return make


def bits(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone().view(torch.uint8) for name, value in model.state_dict().items()}


@pytest.fixture
def untouched() -> Callable[[nn.Module], Callable[[], None]]:
    """Take a picture of a model; the result checks that everything about it is as in the picture."""

    def picture(model: nn.Module) -> Callable[[], None]:
        held, modes = bits(model), [module.training for module in model.modules()]
        flags = [(p.requires_grad, p.grad) for p in model.parameters()]

        def check() -> None:
            assert all(torch.equal(held[name], now) for name, now in bits(model).items())
            assert modes == [module.training for module in model.modules()]
            assert all(
                p.requires_grad == flag and p.grad is grad
                for p, (flag, grad) in zip(model.parameters(), flags, strict=True)
            )
            assert not any(module._forward_hooks for module in model.modules())

        return check

    return picture
