"""Reading and replacing head outputs on live models."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from rlforget.circuits import HeadSites
from rlforget.errors import LayoutError
from tests.circuits.tiny_models import NAMES, VOCABULARY, tiny, zero_head

IDS = torch.randint(VOCABULARY, (3, 5), generator=torch.Generator().manual_seed(0))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.mark.parametrize("name", NAMES)
def test_heads_are_found_with_their_width(name: str) -> None:
    sites = HeadSites(tiny(name))
    assert sites.shape == (2, 4)
    assert sites.head_dim == [6, 6] if name == "wide" else [4, 4]
    assert all(str(layer) in path.split(".") for layer, path in enumerate(sites.names))
    assert len(sites.blocks) == 2


@pytest.mark.parametrize("name", NAMES)
def test_an_edit_that_changes_nothing_leaves_the_logits_to_the_bit(name: str) -> None:
    model = tiny(name)
    before = logits(model)
    with HeadSites(model).edited(lambda layer, z: z):
        assert torch.equal(logits(model), before)
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("name", NAMES)
def test_removing_a_head_equals_zeroing_its_columns(name: str) -> None:
    model = tiny(name)
    sites = HeadSites(model)

    def remove(layer: int, z: torch.Tensor) -> torch.Tensor:
        kept = torch.ones(4)
        kept[2] = float(layer != 1)
        return z * kept[:, None]

    with sites.edited(remove):
        removed = logits(model)
    other = copy.deepcopy(model)
    zero_head(HeadSites(other), 1, 2)
    torch.testing.assert_close(removed, logits(other))
    assert not torch.allclose(removed, logits(model), atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_captured_outputs_are_what_the_projection_reads(name: str) -> None:
    model = tiny(name)
    sites = HeadSites(model)
    read: list[torch.Tensor] = []
    hook = sites.modules[1].register_forward_pre_hook(lambda module, args: read.append(args[0]))
    with sites.capture() as found:
        assert all(z.numel() == 0 for z in found)
        logits(model)
    hook.remove()
    assert found[1].shape == (3, 5, 4, sites.head_dim[1])
    assert torch.equal(found[1].flatten(-2), read[0])
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_captured_outputs_carry_gradients_even_where_no_parameter_does() -> None:
    model = tiny("qwen2").requires_grad_(False)
    with HeadSites(model).capture() as found:
        total = model(input_ids=IDS).logits.square().sum()
    gradients = torch.autograd.grad(total, found)
    assert all(bool(g.abs().sum() > 0) for g in gradients)


def test_inner_blocks_see_what_outer_edits_left() -> None:
    model = tiny("qwen2")
    sites = HeadSites(model)
    with sites.edited(lambda layer, z: torch.full_like(z, 3.0)), sites.capture() as found:
        logits(model)
    assert all(bool((z == 3.0).all()) for z in found)


def test_adapters_and_prefixes_do_not_hide_heads() -> None:
    peft = pytest.importorskip("peft")
    model = tiny("llama")
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["o_proj", "q_proj"], r=2))
    sites = HeadSites(adapted)
    assert (sites.shape, sites.head_dim) == ((2, 4), [4, 4])


class Attention(nn.Module):
    """An attention that calls its projection only under the name `eager`."""

    def __init__(self, owner: Any, heads: int = 2, width: int = 4) -> None:
        super().__init__()
        self.num_heads = heads
        self.o_proj = nn.Linear(width, width, bias=False)
        self._owner = [owner]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self._owner[0].config._attn_implementation == "eager":
            return self.o_proj(x)  # type: ignore[no-any-return]
        return nn.functional.linear(x, self.o_proj.weight)


class Model(nn.Module):
    def __init__(self, implementation: str = "eager", **attention: int) -> None:
        super().__init__()
        self.config = SimpleNamespace(_attn_implementation=implementation)
        self.embed = nn.Embedding(5, 4)
        self.self_attn = Attention(self, **attention)

    def set_attn_implementation(self, name: str) -> None:
        self.config._attn_implementation = name

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.self_attn(self.embed(input_ids))  # type: ignore[no-any-return]


def test_attention_that_bypasses_the_hook_is_named() -> None:
    model = Model("fused")
    with HeadSites(model).capture(), pytest.raises(LayoutError, match=r"self_attn.*not called.*eager"):
        model(torch.tensor([[1]]))


def test_bypassing_attention_is_switched_to_eager_with_a_notice_and_back(caplog: pytest.LogCaptureFixture) -> None:
    model = Model("fused")
    sites = HeadSites(model)
    with sites.observable(lambda: model(torch.tensor([[1]]))), sites.capture() as found:
        assert model.config._attn_implementation == "eager"
        model(torch.tensor([[1, 2]]))
    assert found[0].shape == (1, 2, 2, 2)
    assert model.config._attn_implementation == "fused"
    assert "'fused' hides the heads: switched to eager" in caplog.text


def test_visible_attention_is_not_switched(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny("qwen2")
    before = model.config._attn_implementation
    assert before != "eager"
    with HeadSites(model).observable(lambda: logits(model)):
        assert model.config._attn_implementation == before
    assert not caplog.text


def test_heads_that_stay_hidden_are_refused() -> None:
    model = Model("fused")
    model.set_attn_implementation = lambda name: None  # type: ignore[method-assign]
    sites = HeadSites(model)
    with pytest.raises(LayoutError, match="not called"), sites.observable(lambda: model(torch.tensor([[1]]))):
        pass


def test_models_without_readable_heads_are_refused() -> None:
    with pytest.raises(LayoutError, match="0 of them"):
        HeadSites(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(LayoutError, match=r"whose width the heads divide; found 4 for 3"):
        HeadSites(Model(heads=3))


def test_hybrids_with_a_layer_without_attention_are_refused() -> None:
    model = tiny("qwen2")
    model.model.layers[1].self_attn = nn.Identity()
    with pytest.raises(LayoutError, match=r"each of 2 layers; found 1 of them"):
        HeadSites(model)


def test_encoder_decoders_are_refused() -> None:
    model = Model()
    model.config.is_encoder_decoder = True
    with pytest.raises(LayoutError, match="an encoder and a decoder"):
        HeadSites(model)


def test_quantised_and_sharded_models_are_refused() -> None:
    model = tiny("qwen2")
    model.is_quantized = True
    with pytest.raises(LayoutError, match="quantised"):
        HeadSites(model)
    model = tiny("qwen2")
    projection = model.model.layers[0].self_attn.o_proj
    projection.weight = nn.Parameter(projection.weight.data.to(torch.int8), requires_grad=False)
    with pytest.raises(LayoutError, match=r"o_proj.weight in torch.int8"):
        HeadSites(model)
    model = tiny("qwen2")
    model.model.norm.weight.full_tensor = lambda: None  # as a DTensor has
    with pytest.raises(LayoutError, match=r"model.norm.weight, which is sharded"):
        HeadSites(model)
    model = tiny("qwen2")
    model.model.layers[0].to("meta")
    with pytest.raises(LayoutError, match="on one device; found some on cpu, meta"):
        HeadSites(model)
