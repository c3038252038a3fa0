from __future__ import annotations

import pytest
import torch
from torch import nn

from rlforget.errors import LayoutError
from rlforget.weights import open_weights


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(6, 4)
        self.block = nn.Linear(4, 4)
        self.again = self.block
        self.head = nn.Linear(4, 6, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("steps", torch.tensor(3))
        self.register_buffer("cache", torch.zeros(5), persistent=False)
        self.register_buffer("nothing", None)
        self.register_parameter("absent", None)


def test_module_gives_parameters_and_persistent_buffers_once() -> None:
    model = Model()
    weights = open_weights(model)
    assert weights.names() == ["steps", "embed.weight", "block.weight", "block.bias"]
    assert weights.aliases == {
        "again.weight": "block.weight",
        "again.bias": "block.bias",
        "head.weight": "embed.weight",
    }
    assert set(weights.all_names()) == set(model.state_dict())


def test_live_tensors_are_the_models_own_without_gradients() -> None:
    model = Model()
    weights = open_weights(model)
    tensor = weights.tensor("head.weight")
    assert not tensor.requires_grad
    tensor.fill_(7.0)
    assert torch.equal(model.embed.weight, torch.full((6, 4), 7.0))


def test_state_dict_ties_like_its_module() -> None:
    model = Model()
    assert set(open_weights(model.state_dict()).names()) == set(open_weights(model).names())


def test_cloned_head_is_a_tensor_of_its_own() -> None:
    model = Model()
    model.head.weight = nn.Parameter(model.embed.weight.detach().clone())
    assert "head.weight" in open_weights(model).names()


def test_same_view_ties_and_strides_of_single_rows_do_not_matter() -> None:
    base = torch.randn(4, 1)
    weights = open_weights({"a": base, "b": base.as_strided((4, 1), (1, 4)), "c": base[:]})
    assert weights.names() == ["a"]


@pytest.mark.parametrize(
    "views",
    [
        lambda x: (x, x.t()),
        lambda x: (x, x[1:]),
        lambda x: (x, x.view(-1)),
        lambda x: (x.view(torch.int32), x),
        lambda x: (x[:, ::2], x[:, 1:3]),
        lambda x: (x[0].expand(3, 4), x),
    ],
    ids=["transpose", "tail", "flat", "dtype", "columns that cross", "expanded"],
)
def test_different_views_of_the_same_bytes_are_refused(views: object) -> None:
    first, second = views(torch.randn(4, 4))  # type: ignore[operator]
    with pytest.raises(LayoutError, match="different view of bytes"):
        open_weights({"first": first, "second": second})


@pytest.mark.parametrize(
    "views",
    [
        lambda x: (x[:2], x[2:]),
        lambda x: (x[:, :2], x[:, 2:]),
        lambda x: (x[:, ::2], x[:, 1::2]),
        lambda x: (x[:0], x),
    ],
    ids=["rows", "columns", "interleaved columns", "empty"],
)
def test_disjoint_views_of_one_storage_are_two_tensors(views: object) -> None:
    first, second = views(torch.randn(4, 4))  # type: ignore[operator]
    assert open_weights({"first": first, "second": second}).names() == ["first", "second"]


def test_empty_tensors_are_never_tied() -> None:
    empty = torch.empty(0, 3)
    assert open_weights({"a": empty, "b": empty}).names() == ["a", "b"]


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.empty(3, device="meta"), "meta device"),
        (torch.eye(3).to_sparse(), "sparse"),
        (torch.zeros(2, dtype=torch.complex64), "complex64"),
        (torch.zeros(2, dtype=torch.uint16), "uint16"),
        (nn.LazyLinear(3).weight, "lazy parameter"),
    ],
)
def test_tensors_without_plain_values_are_refused_by_name(tensor: torch.Tensor, message: str) -> None:
    with pytest.raises(LayoutError, match=f"tensor 'odd'.*{message}"):
        open_weights({"odd": tensor})
