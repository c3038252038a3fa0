"""Restoring heads: which bits go back, in every layout of attention, and that undoing leaves none behind."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from rlforget.circuits.finding import find
from rlforget.circuits.heads import HeadSites
from rlforget.circuits.restoration import restoration_effect, restore
from rlforget.circuits.slices import HeadSlices
from rlforget.circuits.task import Task
from rlforget.domains import miniature
from rlforget.domains.science import Science
from rlforget.errors import ConfigError, LayoutError, NotACheckpointError
from rlforget.weights import open_weights, save_checkpoint
from tests.circuits.attention_layouts import ARCHITECTURES, tiny

HEADS = [(layer, head) for layer in range(2) for head in range(4)]
IDS = torch.tensor([[5, 9, 2, 7, 1, 3], [8, 8, 4, 6, 2, 5]])


def perturbed(model: nn.Module, only: Callable[[str], bool] = lambda name: True) -> nn.Module:
    """A copy whose every entry of the chosen tensors has other bits."""
    tuned = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if only(name):
                parameter += 0.01 + 0.05 * torch.rand(parameter.shape, generator=generator)
    return tuned


def attention_names(model: nn.Module) -> set[str]:
    prefixes = tuple(f"{name}." for name in HeadSites(model).names)
    return {name for name, _ in model.named_parameters() if name.startswith(prefixes)}


def bits(model: nn.Module) -> dict[str, bytes]:
    weights = open_weights(model)
    return {name: weights.tensor(name).contiguous().view(torch.uint8).numpy().tobytes() for name in weights.names()}


def changed_entries(before: dict[str, bytes], after: dict[str, bytes], width: int = 4) -> int:
    return sum(
        before[name][i : i + width] != after[name][i : i + width]
        for name in before
        for i in range(0, len(before[name]), width)
    )


@pytest.fixture(params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_every_entry_of_the_attention_belongs_to_a_head_and_once(architecture: str) -> None:
    model = tiny(architecture)
    counts = {name: torch.zeros(parameter.shape) for name, parameter in model.named_parameters()}
    slices = HeadSlices(model)
    for band, owners in slices.owners.items():
        assert owners
        band.of(counts[band.tensor]).add_(1)
        flat = band.holds(torch.arange(counts[band.tensor].numel()), tuple(counts[band.tensor].shape))
        marked = torch.zeros(counts[band.tensor].shape)
        band.of(marked).fill_(1)
        assert torch.equal(flat, marked.flatten().bool())
    inside = attention_names(model)
    for name, count in counts.items():
        assert bool((count == (name in inside)).all()), name


def test_all_heads_give_the_base_s_attention(architecture: str) -> None:
    base = tiny(architecture)
    inside = attention_names(base)
    tuned = perturbed(base, inside.__contains__)
    held = bits(tuned)
    with restore(tuned, base, HEADS) as undo:
        assert bits(tuned) == bits(base)
        assert undo.written == undo.report.coordinates == changed_entries(held, bits(base))
        assert undo.report.left == ()
    assert bits(tuned) == held


def head_outputs(model: nn.Module) -> Tensor:
    """What each head of the first layer adds to the stream, and its own output: [heads, ...]."""
    sites = HeadSites(model)
    found: list[Tensor] = []
    with torch.no_grad(), sites.capture() as z:
        model(IDS)
        own = z[0].movedim(2, 0).flatten(1)
    hook = sites.modules[0].register_forward_hook(lambda module, inputs, output: found.append(output.detach()))
    try:
        for head in range(sites.heads[0]):
            keep = torch.zeros(sites.heads[0])
            keep[head] = 1

            def alone(layer: int, z: Tensor, keep: Tensor = keep) -> Tensor:
                return z * keep[:, None] if layer == 0 else z

            with torch.no_grad(), sites.edited(alone):
                model(IDS)
    finally:
        hook.remove()
    return torch.cat([own, torch.stack(found).flatten(1)], dim=1)


# OLMo 2 norms the queries of all heads together, so that no head is alone there.
@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name != "olmo2"])
def test_a_restored_head_computes_what_it_did_and_the_others_what_they_do(architecture: str) -> None:
    """By behaviour, not by names: the first layer's input is the base's, so its restored head's output must be too."""
    base = tiny(architecture)
    inside = attention_names(base)
    tuned = perturbed(base, lambda name: name in inside and not name.endswith(("o_proj.bias", "out_proj.bias")))
    _keep_output_bias(tuned, base)
    old, new = head_outputs(base), head_outputs(tuned)
    slices = HeadSlices(base)
    for head in range(4):
        group = {other for band in slices.of((0, head)) if band.part == "v" for _, other in slices.owners[band]}
        undo = restore(tuned, base, [(0, head)], shared="any")
        now = head_outputs(tuned)
        undo()
        torch.testing.assert_close(now[head], old[head], rtol=1e-5, atol=1e-6)
        for other in set(range(4)) - group:
            assert not torch.allclose(now[other], old[other], rtol=1e-3, atol=1e-4)
            if not _shared_norm(slices):
                torch.testing.assert_close(now[other], new[other], rtol=1e-5, atol=1e-6)


def _keep_output_bias(tuned: nn.Module, base: nn.Module) -> None:
    for one, other in zip(HeadSites(tuned).modules, HeadSites(base).modules, strict=True):
        bias: Any = one.bias
        if bias is not None:
            bias.data.copy_(other.bias)  # type: ignore[arg-type]


def _shared_norm(slices: HeadSlices) -> bool:
    return any(band.part in "qk" and len(owners) == 4 for band, owners in slices.owners.items())


@settings(max_examples=25)
@given(st.sampled_from(ARCHITECTURES), st.sets(st.sampled_from(HEADS), max_size=8), st.sampled_from(["all", "any"]))
def test_only_the_chosen_slices_change_and_undo_is_exact(architecture: str, chosen: set[Any], shared: Any) -> None:
    base = tiny(architecture)
    tuned = perturbed(base)
    held = bits(tuned)
    slices = HeadSlices(base)
    undo = restore(tuned, base, chosen, shared=shared)
    weights, old, new = open_weights(tuned), dict(base.named_parameters()), perturbed(base).state_dict()
    for name in weights.names():
        wanted = new[name].clone()
        for band in slices.chosen(chosen, shared=shared):
            if band.tensor == name:
                band.of(wanted).copy_(band.of(old[name].detach()))
        assert torch.equal(weights.tensor(name), wanted)
    assert undo.written == undo.report.coordinates == changed_entries(held, bits(tuned))
    assert undo.report.heads == tuple(sorted(chosen))
    undo()
    assert bits(tuned) == held
    assert not undo.active or not chosen


def test_keys_and_values_go_back_with_their_whole_group() -> None:
    base = tiny("qwen2")  # 4 heads, 2 groups
    tuned = perturbed(base)
    keys: Tensor = tuned.model.layers[1].self_attn.k_proj.weight  # type: ignore
    new, old = keys.detach().clone(), base.model.layers[1].self_attn.k_proj.weight.detach()  # type: ignore
    width = keys.shape[0] // 2
    with restore(tuned, base, [(1, 2)]) as undo:
        assert torch.equal(keys, new)
        assert undo.report.left == ((1, 2),)
    with restore(tuned, base, [(1, 2), (1, 3)]) as undo:
        assert torch.equal(keys[:width], new[:width])
        assert torch.equal(keys[width:], old[width:])
        assert undo.report.left == ()
    with restore(tuned, base, [(1, 2)], shared="any"):
        assert torch.equal(keys[:width], new[:width])
        assert torch.equal(keys[width:], old[width:])
    mask = torch.zeros(2, 4, dtype=torch.bool)
    mask[1, 2:] = True
    with restore(tuned, base, mask) as undo:
        assert undo.report.heads == ((1, 2), (1, 3))
        assert torch.equal(keys[width:], old[width:])


def test_what_all_heads_share_goes_back_with_the_last_of_them() -> None:
    base = tiny("gpt2")
    tuned = perturbed(base)
    bias = tuned.transformer.h[0].attn.c_proj.bias  # type: ignore
    old, new = base.transformer.h[0].attn.c_proj.bias.detach(), bias.detach().clone()  # type: ignore
    with restore(tuned, base, [(0, 0), (0, 1), (0, 2)]) as undo:
        assert torch.equal(bias, new)
        assert undo.report.left == ((0, 0), (0, 1), (0, 2))
    with restore(tuned, base, [(0, 0), (0, 1), (0, 2), (0, 3)]):
        assert torch.equal(bias, old)


def test_layers_tied_to_each_other_are_one() -> None:
    base = tiny("qwen2")
    tuned = perturbed(base)
    for model in (base, tuned):
        first, second = (layer.self_attn for layer in model.model.layers)  # type: ignore
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(second, name, getattr(first, name))
    held = bits(tuned)
    slices = HeadSlices(base)
    assert all({layer for layer, _ in owners} == {0, 1} for owners in slices.owners.values())
    with restore(tuned, base, [(0, 0)]) as undo:
        assert undo.written == 0
        assert undo.report.left == ((0, 0),)
    with restore(tuned, base, [(0, 0), (0, 1), (1, 0), (1, 1)]) as undo:
        per_head = sum(band.of(open_weights(tuned).tensor(band.tensor)).numel() for band in slices.of((0, 0)))
        assert undo.report.coordinates == undo.written > per_head
        assert undo.report.left == ()
    assert bits(tuned) == held


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_base_may_be_a_folder_or_a_mapping(dtype: torch.dtype, tmp_path: Path) -> None:
    base = tiny("qwen2").to(dtype)
    tuned = perturbed(base)
    save_checkpoint(tmp_path / "base", base)
    chosen = [(0, 1), (1, 0), (1, 1)]
    with restore(tuned, base, chosen):
        wanted = bits(tuned)
    for source in (tmp_path / "base", str(tmp_path / "base"), dict(base.state_dict())):
        with restore(tuned, source, chosen):
            assert bits(tuned) == wanted


def test_bits_that_no_number_tells_apart_go_back_too() -> None:
    base = tiny("qwen2")
    tuned = copy.deepcopy(base)
    weight = base.model.layers[0].self_attn.q_proj.weight  # type: ignore
    with torch.no_grad():
        weight[0, :2] = torch.tensor([-0.0, float("nan")])
        tuned.model.layers[0].self_attn.q_proj.weight[0, :2] = torch.tensor([0.0, -float("nan")])  # type: ignore
    restore(tuned, base, [(0, 0)])
    assert bits(tuned) == bits(base)


def test_undo_is_idempotent_runs_when_an_exception_flies_and_follows_moved_tensors() -> None:
    base = tiny("qwen2")
    tuned = perturbed(base)
    held = bits(tuned)
    undo = restore(tuned, base, HEADS[:3])
    for parameter in tuned.parameters():
        parameter.data = parameter.data.clone()  # as a move to a device and back does
    with pytest.raises(KeyError, match="mine"), undo:
        raise KeyError("mine")
    assert bits(tuned) == held
    with torch.no_grad():
        tuned.model.layers[0].self_attn.q_proj.weight += 1  # type: ignore
    moved_on = bits(tuned)
    undo()
    assert bits(tuned) == moved_on
    assert "undone" in repr(undo)


def test_a_fault_on_the_way_puts_all_bits_back(monkeypatch: pytest.MonkeyPatch) -> None:
    import rlforget.circuits.restoration as module

    base = tiny("qwen2")
    tuned = perturbed(base)
    held, real, calls = bits(tuned), module._bits, {"count": 0}

    def interrupted(band: Any, tensor: Tensor) -> Tensor:
        calls["count"] += 1
        if calls["count"] == 8:
            assert bits(tuned) != held
            raise KeyboardInterrupt
        return real(band, tensor)

    monkeypatch.setattr(module, "_bits", interrupted)
    with pytest.raises(KeyboardInterrupt):
        restore(tuned, base, HEADS)
    assert bits(tuned) == held


def test_a_restored_circuit_and_a_rollback_undo_in_turn() -> None:
    from rlforget.delta import diff
    from rlforget.interference import Coordinates
    from rlforget.recovery import rollback

    base = tiny("qwen2")
    tuned = perturbed(base)
    held, delta = bits(tuned), diff(base, tuned)
    with rollback(tuned, delta, {"model.norm.weight": torch.tensor([0])}):
        inside = bits(tuned)
        with restore(tuned, base, HEADS):
            assert bits(tuned) != inside
        assert bits(tuned) == inside
    assert bits(tuned) == held
    assert Coordinates.of(delta).count == sum(p.numel() for p in tuned.parameters())


def test_what_is_refused(tmp_path: Path) -> None:
    base = tiny("qwen2")
    tuned = perturbed(base)
    held = bits(tuned)
    for heads in ([(2, 0)], [(0, 4)], [(-1, 0)], torch.ones(4, 2, dtype=torch.bool), torch.ones(2, 4)):
        with pytest.raises(ConfigError, match=r"head|mask"):
            restore(tuned, base, heads)
    with pytest.raises(ConfigError, match="shared"):
        restore(tuned, base, [(0, 0)], shared="some")  # type: ignore[arg-type]
    with pytest.raises(LayoutError, match=r"q_proj.weight.*expected the model's float32.*found bfloat16"):
        restore(tuned, tiny("qwen2").to(torch.bfloat16), [(0, 0)])
    with pytest.raises(LayoutError, match="no such tensor"):
        restore(tuned, tiny("gpt2"), [(0, 0)])
    with pytest.raises(NotACheckpointError):
        restore(tuned, tmp_path, [(0, 0)])
    untied = {name: value.clone() for name, value in base.state_dict().items()}
    one = tuned.model.layers[0].self_attn  # type: ignore
    two = tuned.model.layers[1].self_attn  # type: ignore
    two.k_proj = one.k_proj
    with pytest.raises(LayoutError, match="different bits"):
        restore(tuned, untied, [(0, 0)], shared="any")
    tuned = perturbed(base)
    assert bits(tuned) == held


def test_an_adapter_and_an_unknown_attention_are_refused() -> None:
    base = tiny("qwen2")
    adapted = copy.deepcopy(base)

    class Adapter(nn.Module):
        def __init__(self, layer: nn.Linear) -> None:
            super().__init__()
            self.base_layer = layer

        @property
        def weight(self) -> Tensor:
            return self.base_layer.weight

    adapted.model.layers[0].self_attn.q_proj = Adapter(adapted.model.layers[0].self_attn.q_proj)  # type: ignore
    with pytest.raises(LayoutError, match="Merge adapters"):
        restore(adapted, base, [(0, 0)])
    lacking = copy.deepcopy(base)
    del lacking.model.layers[0].self_attn.v_proj  # type: ignore
    with pytest.raises(LayoutError, match="projections of queries, keys and values"):
        restore(lacking, base, [(0, 0)])


def test_the_effect_stands_beside_random_heads_and_leaves_the_model() -> None:
    """Only head 0:1 is broken, so that its restoration alone mends the model."""
    base = tiny("qwen2")
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        for band in HeadSlices(tuned).of((0, 1)):
            if band.part in "qo":
                band.of(open_weights(tuned).tensor(band.tensor)).add_(1.0)
    held = bits(tuned)
    with torch.no_grad():
        wanted = base(IDS).logits

    def likeness(model: nn.Module) -> float:
        with torch.no_grad():
            return -float((model(IDS).logits - wanted).abs().max())  # type: ignore[operator]

    effect = restoration_effect(tuned, base, [(0, 1)], likeness, draws=40, seed=1)
    assert effect.after == effect.everything == 0.0
    assert effect.before < 0
    hits = [value for value in effect.random if value == 0.0]
    assert 0 < len(hits) < 20
    assert effect.p_value == (1 + len(hits)) / 41
    assert effect.written == 2 * base.config.hidden_size * (base.config.hidden_size // 4) + base.config.hidden_size // 4
    assert {count for value, count in zip(effect.random, effect.random_written, strict=True) if value < 0} == {0}
    assert bits(tuned) == held
    within = restoration_effect(tuned, base, [(0, 1), (1, 0)], likeness, draws=30, within_layers=True, shared="any")
    assert {0.0} < set(within.random)
    again = restoration_effect(tuned, base, [(0, 1)], likeness, draws=40, seed=1)
    assert again == effect
    assert again.to_dict()["p_value"] == effect.p_value


def test_the_effect_on_a_domain_and_a_task() -> None:
    base, tokenizer = miniature.load()
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        for layer in tuned.model.layers:
            layer.self_attn.o_proj.weight.zero_()
    heads = [(layer, head) for layer in range(4) for head in range(4)]
    options: dict[str, Any] = {"tokenizer": tokenizer, "draws": 1, "samples": 32}
    effect = restoration_effect(tuned, base, heads, Science(), **options)
    assert effect.before < effect.after == effect.everything == effect.random[0]
    task = Task.from_domain("science", count=24)
    by_task = restoration_effect(tuned, base, heads, task, **options)
    assert by_task.before < by_task.after == by_task.everything
    found = find(base, task, "random", tokenizer=tokenizer)
    assert by_task.after == pytest.approx(found.metric["clean"], abs=1e-5)
    with pytest.raises(ConfigError, match="tokenizer"):
        restoration_effect(tuned, base, heads, Science())
    for refused in ({"heads": []}, {"heads": heads, "draws": -1}):
        with pytest.raises(ConfigError, match="at least one head"):
            restoration_effect(tuned, base, measure=Science(), **{**options, **refused})
