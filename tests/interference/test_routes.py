"""Routes: what is measured, against the plain way; whose weights are whose; and overlaps beside chance."""

from __future__ import annotations

import copy
import itertools
import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import rlforget as rf
from rlforget.delta.overlaps import SetOverlap
from rlforget.errors import ConfigError, LayoutError, NonFiniteError
from rlforget.interference.directions import Sketch
from rlforget.interference.layered_overlap import LayeredOverlap
from tests.circuits.attention_layouts import tiny
from tests.interference.conftest import Batch, tiny_model

Completions = Callable[..., list[Batch]]
Untouched = Callable[[nn.Module], Callable[[], None]]

KNOWN = ("qwen2", "qwen3", "gemma3", "gpt2", "gpt_neox", "phi3", "opt", "falcon", "gptj", "mpt", "gpt_bigcode")


def inputs_of(model: nn.Module, name: str, batches: list[Batch]) -> Tensor:
    """The inputs of a module at every position that counts, one completion at a time and without padding."""
    found: list[Tensor] = []
    hook = model.get_submodule(name).register_forward_pre_hook(lambda _, args: found.append(args[0][0]))
    model.eval()
    with torch.no_grad():
        for batch in batches:
            for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
                model(input_ids=ids[mask.bool()].unsqueeze(0))
    hook.remove()
    return torch.cat(found).double()


@pytest.mark.parametrize("name", ["model.layers.0", "model.layers.1"])
def test_routes_are_what_the_plain_way_gives(name: str, completions: Completions, untouched: Untouched) -> None:
    model = tiny_model().train()
    batches = completions(6)
    check = untouched(model)
    found = rf.routes(model, batches, directions=3)
    check()
    assert (found.samples, found.tokens) == (6, int(sum(batch["attention_mask"].sum() for batch in batches)))
    channels = inputs_of(model, f"{name}.mlp.down_proj", batches)
    torch.testing.assert_close(found.channels[f"{name}.mlp"], channels.abs().mean(0), rtol=1e-5, atol=1e-7)
    heads = inputs_of(model, f"{name}.self_attn.o_proj", batches).unflatten(1, (4, 4))
    torch.testing.assert_close(found.heads[f"{name}.self_attn"], heads.norm(dim=-1).mean(0), rtol=1e-5, atol=1e-7)
    for layer in ("self_attn.k_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"):
        rows, directions = inputs_of(model, f"{name}.{layer}", batches), found.inputs[f"{name}.{layer}"]
        values = torch.linalg.eigvalsh(rows.mT @ rows / len(rows)).flip(0)[:3]
        torch.testing.assert_close(directions.values, values, rtol=1e-5, atol=1e-8)
        torch.testing.assert_close((rows @ directions.basis).square().mean(0), values, rtol=1e-5, atol=1e-8)
        assert directions.energy == pytest.approx(float(rows.square().sum(1).mean()), rel=1e-5)
        assert directions.error == 0
    layers = [n for n, module in model.named_modules() if isinstance(module, nn.Linear)]
    assert sorted(found.inputs) == sorted(layers)


@pytest.mark.parametrize("architecture", KNOWN)
def test_a_route_holds_the_weights_of_its_parts_alone(architecture: str, completions: Completions) -> None:
    """Without the weights on a route its channels and heads say nothing, and the others say what they said."""
    model = tiny(architecture)
    batches = completions(2, vocabulary=24)
    found = rf.routes(model, batches)
    route = found.top(0.3)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)
    coordinates = route.coordinates(rf.diff(model, other))
    assert coordinates.count < sum(p.numel() for p in model.parameters()) / 2
    with torch.no_grad():
        for name, indices in coordinates.items():
            parameter: Any = model.get_parameter(name)
            parameter.view(-1)[indices] = 0.0
    after = rf.routes(model, batches)
    first = next(iter(found.channels))
    chosen, was, now = route.channels[first], found.channels[first], after.channels[first]
    plain = all(module.bias is None for module in _into(model, first))
    idle = now[chosen] == now[chosen][0] if plain else now[chosen] < 1e-6
    assert bool(idle.all())
    assert int(chosen.sum()) == round(0.3 * len(chosen))
    # What is left of the first layer's heads: where no key or value is shared, theirs are as they were.
    first = next(iter(found.heads))
    values_gone = after.heads[first][route.heads[first]]
    assert bool((values_gone < 1e-6).all())
    if architecture in ("gpt2", "gpt_neox", "opt", "gptj", "mpt"):
        kept = ~route.heads[first]
        torch.testing.assert_close(after.heads[first][kept], found.heads[first][kept], rtol=1e-5, atol=1e-6)
    assert bool((was > 0).any())


def _into(model: nn.Module, block: str) -> list[Any]:
    children = dict(model.get_submodule(block).named_children())
    return [m for n, m in children.items() if n in ("gate_proj", "up_proj", "gate_up_proj", "fc1", "fc_in", "c_fc")]


def test_keys_and_values_belong_to_every_head_of_their_group(completions: Completions) -> None:
    model = tiny_model()  # 4 query heads, 2 groups
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)
    delta = rf.diff(model, other)
    route = rf.routes(model, completions(2)).top(0.1)
    for chosen in (*route.channels.values(), *route.heads.values()):
        chosen.zero_()
    assert route.coordinates(delta).count == 0
    route.heads["model.layers.1.self_attn"][3] = True
    found = route.coordinates(delta)
    prefix, width = "model.layers.1.self_attn.", 16
    expected = {
        f"{prefix}q_proj.weight": torch.arange(12 * width, 16 * width),
        f"{prefix}q_proj.bias": torch.arange(12, 16),
        f"{prefix}k_proj.weight": torch.arange(4 * width, 8 * width),
        f"{prefix}k_proj.bias": torch.arange(4, 8),
        f"{prefix}v_proj.weight": torch.arange(4 * width, 8 * width),
        f"{prefix}v_proj.bias": torch.arange(4, 8),
        f"{prefix}o_proj.weight": (width * torch.arange(16).unsqueeze(1) + torch.arange(12, 16)).flatten(),
    }
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], indices) for name, indices in expected.items())


def test_coordinates_are_the_changed_ones_and_narrow_a_choice(
    before: nn.Module, after: nn.Module, completions: Completions
) -> None:
    delta = rf.diff(before, after)
    one, other = (rf.routes(after, completions(4, seed=seed)) for seed in (0, 1))
    shared = one.shared(other, top=0.5)
    within = shared.coordinates(delta)
    within.positions(delta)  # each is a coordinate that changed
    assert within.count < one.top(0.5).coordinates(delta).count < one.top(1.0).coordinates(delta).count
    picked = rf.conflict(delta, score="magnitude").top(count=20, within=within)
    assert picked.count == 20
    for name, indices in picked.items():
        assert torch.isin(indices, within[name]).all()


def test_overlap_counts_by_layer_beside_chance(completions: Completions) -> None:
    model = tiny_model()
    one, other = (rf.routes(model, completions(4, seed=seed)).top(0.25) for seed in (0, 1))
    found = one.overlap(other)
    for kind, mine, others in (
        (found.channels, one.channels, other.channels),
        (found.heads, one.heads, other.heads),
    ):
        assert list(kind.layers) == list(mine)
        assert kind.total.common == sum(int((mine[name] & others[name]).sum()) for name in mine)
    assert found.channels.by_chance == pytest.approx(2 * 6 * 6 / 24)
    assert one.overlap(one).channels.total.jaccard == 1.0
    assert one.overlap(one).channels.p < 1e-8
    assert (one & other).overlap(one).channels.total.of_first == 1.0
    json.dumps(found.to_dict(), allow_nan=False)


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_the_p_value_is_that_of_all_ways_to_draw(data: st.DataObject) -> None:
    layers, ways = {}, [0]
    for name in "ab":
        population = data.draw(st.integers(1, 6))
        first, second = (data.draw(st.integers(0, population)) for _ in range(2))
        draws = [len({*one} & {*range(first)}) for one in itertools.combinations(range(population), second)]
        layers[name] = SetOverlap(population, first, second, data.draw(st.sampled_from(draws)))
        ways = [a + b for a in ways for b in draws]
    found = LayeredOverlap(layers)
    reached = sum(common >= found.total.common for common in ways) / len(ways)
    assert found.p == pytest.approx(reached)
    assert found.by_chance == pytest.approx(sum(ways) / len(ways))


@settings(max_examples=20, deadline=None)
@given(width=st.integers(2, 30), size=st.integers(1, 12), count=st.integers(1, 200), seed=st.integers(0, 1000))
def test_a_sketch_keeps_its_bound(width: int, size: int, count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, width, generator=generator, dtype=torch.float64)
    rows *= 0.7 ** torch.arange(width, dtype=torch.float64)
    sketch = Sketch(width, size, rows.device)
    for part in rows.split(7):  # type: ignore[no-untyped-call]
        sketch.add(part)
    found = sketch.directions(width)
    kept = found.basis * found.values @ found.basis.mT
    missing = torch.linalg.eigvalsh(rows.mT @ rows / count - kept)
    assert missing[0] > -1e-9
    assert missing[-1] <= found.error + 1e-9
    torch.testing.assert_close(found.basis.mT @ found.basis, torch.eye(found.basis.shape[1], dtype=torch.float64))
    if size >= width:
        assert found.error < 1e-12


def test_directions_overlap_from_nothing_to_all() -> None:
    def directions(*axes: int) -> Any:
        sketch = Sketch(6, 6, torch.device("cpu"))
        sketch.add(torch.eye(6)[list(axes)])
        return sketch.directions(len(axes))

    assert directions(0, 1).overlap(directions(2, 3)) == pytest.approx(0)
    assert directions(0, 1).overlap(directions(1, 2)) == pytest.approx(0.5)
    assert directions(0, 1).overlap(directions(1, 0)) == pytest.approx(1)
    assert directions(0, 1).share == pytest.approx(1)


def test_the_same_arguments_give_the_same_routes(completions: Completions) -> None:
    model = tiny_model()
    one, other = (rf.routes(model, completions(4)) for _ in range(2))
    assert all(torch.equal(values, other.channels[name]) for name, values in one.channels.items())
    assert all(torch.equal(values.basis, other.inputs[name].basis) for name, values in one.inputs.items())


def test_what_has_no_routes_is_refused(completions: Completions) -> None:
    batches = completions(2)
    with pytest.raises(LayoutError, match=r"experts packed into 'model\.layers\.0"):
        rf.routes(tiny("gpt_oss"), batches)
    found = rf.routes(tiny_model(), batches)
    for share in (0.0, 1.5, math.nan):
        with pytest.raises(ConfigError):
            found.top(share)
    with pytest.raises(ConfigError, match="directions"):
        rf.routes(tiny_model(), batches, directions=0)
    with pytest.raises(LayoutError, match="same model"):
        found.shared(rf.routes(tiny("gpt2"), batches))
    model = tiny_model()
    with torch.no_grad():
        model.get_parameter("model.layers.1.mlp.up_proj.weight")[3, 3] = math.nan
    with pytest.raises(NonFiniteError, match=r"model\.layers\.1\.mlp"):
        rf.routes(model, batches)
