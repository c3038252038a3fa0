"""One sweep down the layers: the Gram matrix of the gradients themselves, and what cannot be taken apart."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rlforget.interference import layered
from rlforget.interference.gram import LayerGradients
from rlforget.interference.layer_chain import NotLayeredError
from rlforget.interference.layered import layered_gram
from rlforget.interference.rows import Rows, cut, domain_rows

from .conftest import tiny_model
from .test_gram import MODELS, relative_error, true_gradients
from .test_sample_gradients import Toy

Batch = dict[str, Tensor]
Make = Callable[..., list[Batch]]


def as_it_is(_: object) -> AbstractContextManager[None]:
    return nullcontext()


def rows_of(model: nn.Module, completions: Make) -> tuple[list[Rows], list[Rows]]:
    some, others = completions(5), completions(4, seed=1, width=11, batch_size=3)
    return cut(domain_rows(model, some), 2), domain_rows(model, others, kind="token")[:1]


@pytest.mark.parametrize("held", [1, 1 << 30], ids=["a module at a time", "a layer at a time"])
@pytest.mark.parametrize("name", MODELS)
def test_equals_the_gram_matrix_of_the_gradients(
    name: str, held: int, completions: Make, untouched: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layered, "HELD_BYTES", held)
    model = MODELS[name]()
    left, right = rows_of(model, completions)
    blocks = [dict(block) for block in [*left, *right]]
    expected = true_gradients(model, blocks)
    single = true_gradients(model, blocks, dtype=torch.float32)
    check = untouched(model)
    found = layered_gram(LayerGradients(model), [(left, as_it_is), (right, as_it_is)])
    check()
    by_arithmetic = relative_error(single @ single.T, expected, expected)  # the model's own, in float32
    assert by_arithmetic < 1e-5  # torch's own: its products differ from processor to processor, up to 4.1e-6 so far
    assert relative_error(found, expected, expected) < 1.25 * by_arithmetic
    assert torch.equal(found, found.T)


def test_counted_parameters_alone(completions: Make) -> None:
    model = tiny_model()
    names = ["model.layers.0.mlp.up_proj.weight", "model.layers.1.self_attn.q_proj.bias"]
    left, right = rows_of(model, completions)
    expected = true_gradients(model, [dict(block) for block in [*left, *right]], names)
    layers = LayerGradients(model, only=names.__contains__)
    found = layered_gram(layers, [(left, as_it_is), (right, as_it_is)])
    assert relative_error(found, expected, expected) < 1e-5


def test_each_side_at_its_own_point(completions: Make) -> None:
    model = tiny_model()
    left, right = rows_of(model, completions)

    @contextmanager
    def moved(parameters: Any) -> Any:
        parameters = list(parameters)
        with torch.no_grad():
            for parameter in parameters:
                parameter.mul_(1.125)
        yield
        with torch.no_grad():
            for parameter in parameters:
                parameter.div_(1.125)

    here = true_gradients(model, [dict(block) for block in left])
    with moved(model.parameters()):
        there = true_gradients(model, [dict(block) for block in right])
    expected = torch.cat([here, there])
    found = layered_gram(LayerGradients(model), [(left, as_it_is), (right, moved)])
    assert relative_error(found, expected, expected) < 1e-5


class Skipping(nn.Module):
    """Layers that are not a chain: the second is given what the first was."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.layers
        return first(x) + second(x)


class Same(nn.Module):
    """One layer twice."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.Linear(8, 8)
        self.layers = nn.ModuleList([layer, layer])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.mark.parametrize("middle", [nn.Linear(8, 8), Skipping(), Same()], ids=lambda m: type(m).__name__)
def test_what_is_no_chain_is_said_so(middle: nn.Module, completions: Make) -> None:
    model = Toy(middle)
    left, _ = rows_of(tiny_model(), completions)
    with pytest.raises(NotLayeredError):
        layered_gram(LayerGradients(model), [(left, as_it_is)])


def test_every_layer_runs_twice_a_block(completions: Make) -> None:
    """Once to keep what it is given, once for its gradients: however many blocks there are."""
    model = tiny_model()
    left, right = rows_of(model, completions)
    calls = 0

    def note(*_: object) -> None:
        nonlocal calls
        calls += 1

    handle = model.get_submodule("model.layers.0.mlp.up_proj").register_forward_hook(note)
    layered_gram(LayerGradients(model), [(left, as_it_is), (right, as_it_is)])
    handle.remove()
    assert calls == 2 * len([*left, *right])
