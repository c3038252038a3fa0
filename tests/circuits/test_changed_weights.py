"""What a delta did to single heads, against changes made by hand."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch

from rlforget.circuits.changed_weights import head_changes
from rlforget.delta import diff
from rlforget.errors import ConfigError, LayoutError
from rlforget.interference import Fisher
from tests.circuits.tiny_models import tiny

WIDTH = 4  # of a head: 16 hidden, 4 heads, 2 of them to a group


def changed(model: Any, edits: dict[str, tuple[Any, float]]) -> Any:
    other = copy.deepcopy(model)
    with torch.no_grad():
        for name, (place, step) in edits.items():
            other.get_parameter(name)[place] += step
    return other


def test_each_part_counts_its_own_coordinates() -> None:
    base = tiny("qwen2")
    attention = "model.layers.1.self_attn"
    tuned = changed(
        base,
        {
            f"{attention}.q_proj.weight": ((slice(8, 10), slice(None)), 0.5),  # two of the four rows of head 2
            f"{attention}.q_proj.bias": (8, 0.5),
            f"{attention}.k_proj.weight": ((4, slice(0, 8)), 0.5),  # half a row of group 1: heads 2 and 3
            f"{attention}.o_proj.weight": ((slice(None), 12), 0.5),  # a column of head 3
            "model.layers.0.mlp.up_proj.weight": ((0, 0), 0.5),  # no head's
        },
    )
    found = head_changes(tuned, diff(base, tuned), [(1, 2), (1, 3), (0, 0)])
    first, two, three = found.heads
    assert (first.head, first.total.changed, two.head, three.head) == ((0, 0), 0, (1, 2), (1, 3))
    assert {part: (one.changed, one.coordinates) for part, one in two.parts.items()} == {
        "q": (2 * 16 + 1, WIDTH * 17),
        "k": (8, WIDTH * 17),
        "v": (0, WIDTH * 17),
        "o": (0, 16 * WIDTH),
    }
    assert (three.parts["q"].changed, three.parts["k"].changed, three.parts["o"].changed) == (0, 8, 16)
    assert two.shared == {"q": 1, "k": 2, "v": 2, "o": 1}
    assert two.parts["k"].norm == pytest.approx(0.5 * 8**0.5, rel=1e-5)
    assert two.parts["q"].share == 33 / 68
    assert sum(one.changed for one in found.others.values()) == 0


def test_every_coordinate_of_the_attention_is_some_heads() -> None:
    base = tiny("qwen2")
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.add_(1.0)
    found = head_changes(tuned, diff(base, tuned), [(0, 0), (0, 1)])
    assert all(part.share == 1.0 for one in found.heads for part in one.parts.values())
    # All of layer 1, and heads 2 and 3 of layer 0 with the keys and values of their group.
    attention = sum(p.numel() for n, p in base.named_parameters() if "layers.1.self_attn" in n)
    assert sum(one.coordinates for one in found.others.values()) == attention * 3 // 2


def test_the_predicted_damage_is_half_of_fisher_times_square() -> None:
    base = tiny("wide")
    name = "model.layers.0.self_attn.o_proj.weight"
    tuned = changed(base, {name: ((slice(None), slice(0, 12)), 0.25)})  # heads 0 and 1, of width 6
    delta = diff(base, tuned)
    weight = torch.rand(delta[name].changed, generator=torch.Generator().manual_seed(0))
    fisher = Fisher({name: weight}, {name: torch.zeros_like(weight)}, 1)
    found = head_changes(tuned, delta, torch.tensor([[True, False, True, False], [False] * 4]), fisher=fisher)
    step = delta[name].values
    inside = delta[name].indices % 24 < 6
    damages = [one.parts["o"].damage for one in found.heads]
    assert damages[0] == pytest.approx(float((weight * step**2)[inside].sum()) / 2)
    assert damages[1] == 0.0
    assert found.others["o"].damage == pytest.approx(float((weight * step**2)[~inside].sum()) / 2)
    table = found.table()
    assert "damage" in table
    assert max(map(len, table.splitlines())) <= 100
    assert json.loads(json.dumps(found.to_dict()))["heads"][0]["parts"]["o"]["changed"] == int(inside.sum())


def test_fused_projections_lie_the_other_way_round() -> None:
    base = tiny("gpt2")
    # GPT-2 keeps [in, 3 · out]: the values of head 1 are columns 2 · 16 + 4 to 2 · 16 + 8.
    tuned = changed(base, {"transformer.h.0.attn.c_attn.weight": ((slice(None), slice(36, 40)), 1.0)})
    found = head_changes(tuned, diff(base, tuned), [(0, 1), (0, 2)])
    assert [one.parts["v"].changed for one in found.heads] == [16 * 4, 0]
    assert [one.parts["q"].changed for one in found.heads] == [0, 0]


def test_deltas_and_fishers_of_other_models_are_refused() -> None:
    base, other = tiny("qwen2"), tiny("gpt2")
    delta = diff(base, changed(base, {"model.layers.0.self_attn.q_proj.weight": ((0, 0), 1.0)}))
    with pytest.raises(LayoutError, match="none of that name"):
        head_changes(other, delta, [(0, 0)])
    with pytest.raises(LayoutError, match="Fisher"):
        head_changes(base, delta, [(0, 0)], fisher=Fisher({}, {}, 1))
    with pytest.raises(ConfigError, match="head 0:9"):
        head_changes(base, delta, [(0, 9)])
