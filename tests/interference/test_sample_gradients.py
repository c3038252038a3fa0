"""Per-sample gradients: layer by layer they are those of one backward pass a sample."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from rlforget.interference.completions import completion_log_probs
from rlforget.interference.layer_rules import rule_for
from rlforget.interference.sample_gradients import SampleGradients, columns_for, width

from .conftest import tiny_model

Batch = dict[str, Tensor]


def both_ways(model: nn.Module, batch: Batch, indices: dict[str, Tensor] | None = None) -> tuple[Tensor, Tensor]:
    columns = columns_for(dict(model.named_parameters()), indices)
    shape = (batch["input_ids"].shape[0], width(columns))
    fast, slow = torch.full(shape, torch.nan), torch.full(shape, torch.nan)  # poisoned: all must be written
    gradients = SampleGradients(model, columns)
    ahead = gradients.write(batch, fast)
    assert gradients.batched
    behind = SampleGradients(model, columns, batched=False).write(batch, slow)
    torch.testing.assert_close(ahead, behind, rtol=1e-5, atol=1e-5)
    return fast, slow


@pytest.mark.parametrize("tied", [True, False])
def test_layer_by_layer_equals_one_backward_pass_a_sample(
    tied: bool, completions: Callable[..., list[Batch]], untouched: Callable[..., Any]
) -> None:
    model = tiny_model(tied=tied).train()
    next(model.parameters()).requires_grad_(False)
    next(model.parameters()).grad = torch.ones(13, 16)
    check = untouched(model)
    fast, slow = both_ways(model, completions(7, batch_size=7)[0])
    torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-5 * float(slow.abs().max()))
    assert slow.abs().amax() > 1e-2
    check()


def test_rows_are_gradients_of_the_log_probability(completions: Callable[..., list[Batch]]) -> None:
    model = tiny_model().eval()
    batch = completions(3, batch_size=3)[0]
    _, slow = both_ways(model, batch)
    one = {name: value[1:2] for name, value in batch.items()}
    model.zero_grad()
    completion_log_probs(model, one).sum().backward()
    expected = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])  # type: ignore[union-attr]
    torch.testing.assert_close(slow[1], expected, rtol=1e-5, atol=1e-5)


def test_gathered_columns_are_those_of_the_whole_row(completions: Callable[..., list[Batch]]) -> None:
    model = tiny_model()
    batch = completions(4)[0]
    generator = torch.Generator().manual_seed(0)
    indices = {
        name: (torch.rand(p.numel(), generator=generator) < 0.3).nonzero().flatten()
        for name, p in model.named_parameters()
    }
    whole, _ = both_ways(model, batch)
    gathered, slow = both_ways(model, batch, indices)
    start, kept = 0, []
    for name, parameter in model.named_parameters():
        kept.append(whole[:, start + indices[name]])
        start += parameter.numel()
    torch.testing.assert_close(gathered, torch.cat(kept, 1), rtol=0, atol=0)
    torch.testing.assert_close(slow, gathered, rtol=1e-4, atol=1e-4)


def test_padding_does_not_matter(completions: Callable[..., list[Batch]]) -> None:
    model = tiny_model()
    batch = completions(2, batch_size=2)[0]
    wider = {
        "input_ids": torch.cat([torch.zeros(2, 4, dtype=torch.int64), batch["input_ids"]], 1),
        "attention_mask": torch.cat([torch.zeros(2, 4, dtype=torch.int64), batch["attention_mask"]], 1),
        "labels": torch.cat([torch.full((2, 4), -100), batch["labels"]], 1),
    }
    torch.testing.assert_close(both_ways(model, batch)[0], both_ways(model, wider)[0], rtol=1e-4, atol=1e-4)


class Toy(nn.Module):
    """A language model of odd parts."""

    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.embed = nn.Embedding(13, 8, padding_idx=0)
        self.middle = middle
        self.head = nn.Linear(8, 13)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.head(self.middle(self.embed(input_ids))))


class Conv1D(nn.Module):
    """As in GPT-2: a linear layer with a transposed weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(8, 8)), nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class Shared(nn.Module):
    """Calls one layer twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(self.layer(x).tanh())
        return out


class Scale(nn.Module):
    """A parameter without a rule."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class Deceptive(nn.Linear):
    """A linear layer that is none: the rule must not be believed."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x @ self.weight.square().T


class Flattening(nn.Linear):
    """Hides the samples' dimension from its layer."""

    def __init__(self) -> None:
        super().__init__(1, 1)
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x.reshape(-1, 8)).view(x.shape)
        return out


PARTS: dict[str, tuple[Callable[[], nn.Module], bool]] = {
    "layer norm": (lambda: nn.LayerNorm(8), True),
    "layer norm without bias": (lambda: nn.LayerNorm(8, bias=False), True),
    "torch rms norm": (lambda: nn.RMSNorm(8, eps=1e-5), True),
    "torch rms norm, default epsilon": (lambda: nn.RMSNorm(8), True),
    "conv1d": (Conv1D, True),
    "shared": (Shared, True),
    "none": (nn.Identity, True),
    "scale": (Scale, False),
    "deceptive": (lambda: Deceptive(8, 8), False),
    "flattening": (Flattening, False),
}


@pytest.mark.parametrize("part", PARTS)
def test_every_kind_of_layer(part: str, completions: Callable[..., list[Batch]]) -> None:
    make, batched = PARTS[part]
    torch.manual_seed(0)
    model = Toy(make())
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    batch = completions(5, batch_size=5)[0]
    columns = columns_for(dict(model.named_parameters()))
    fast, slow = torch.empty(5, width(columns)), torch.empty(5, width(columns))
    gradients = SampleGradients(model, columns)
    gradients.write(batch, fast)
    SampleGradients(model, columns, batched=False).write(batch, slow)
    assert gradients.batched == batched
    torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-5 * float(slow.abs().max()))


def test_frozen_modules_need_no_rule(completions: Callable[..., list[Batch]]) -> None:
    model = Toy(Scale())
    columns = columns_for({"head.weight": model.head.weight})
    gradients = SampleGradients(model, columns)
    rows, slow = torch.empty(4, 8 * 13), torch.empty(4, 8 * 13)
    gradients.write(completions(4)[0], rows)
    SampleGradients(model, columns, batched=False).write(completions(4)[0], slow)
    assert gradients.batched
    torch.testing.assert_close(rows, slow, rtol=1e-4, atol=1e-5)


def test_an_embedding_that_renormalises_has_no_rule() -> None:
    assert rule_for(nn.Embedding(3, 2, max_norm=1.0)) is None
    assert rule_for(nn.Embedding(3, 2, scale_grad_by_freq=True)) is None


@settings(max_examples=15, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 5), st.integers(1, 4)),
    seed=st.integers(0, 1000),
)
def test_linear_rule_is_the_sum_of_outer_products(shape: tuple[int, int, int, int], seed: int) -> None:
    samples, tokens, wide, narrow = shape
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, tokens, wide, generator=generator)
    y = torch.randn(samples, tokens, narrow, generator=generator)
    layer = nn.Linear(wide, narrow)
    rule = rule_for(layer)
    assert rule is not None
    found = rule(layer, x, y)
    expected = torch.einsum("nto,nti->noi", y.double(), x.double()).float()
    torch.testing.assert_close(found["weight"], expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found["bias"], y.sum(1), rtol=1e-6, atol=1e-6)
