from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlforget.delta import Delta, SetOverlap, diff, overlap
from rlforget.delta.neurons import neuron_edits, top_neurons
from rlforget.errors import LayoutError


def edited(base: dict[str, torch.Tensor], edits: dict[str, torch.Tensor]) -> Delta:
    return diff(base, {name: tensor + edits.get(name, 0) for name, tensor in base.items()})


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=60), st.integers(1, 7))
@settings(max_examples=60, deadline=None)
def test_coordinates_overlap_as_sets_do(marks: list[tuple[bool, bool]], chunk: int) -> None:
    base = {"x": torch.zeros(len(marks)), "y": torch.zeros(2)}
    a, b = (diff(base, {**base, "x": torch.tensor([float(mark[side]) for mark in marks])}) for side in (0, 1))
    first = {i for i, (left, _) in enumerate(marks) if left}
    second = {i for i, (_, right) in enumerate(marks) if right}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rlforget.delta.overlaps._CHUNK", chunk)
        result = overlap(a, b).coordinates
    assert result == SetOverlap(len(marks) + 2, len(first), len(second), len(first & second))
    if first | second:
        assert result.jaccard == len(first & second) / len(first | second)
    if first:
        assert result.of_first == len(first & second) / len(first)
    if second:
        assert result.of_second == len(first & second) / len(second)


def test_chance_levels_are_met_by_independent_sets() -> None:
    torch.manual_seed(0)
    base = {"x": torch.zeros(1_000_000)}
    a, b = (diff(base, {"x": (torch.rand(1_000_000) < share).float()}) for share in (0.2, 0.05))
    result = overlap(a, b).coordinates
    assert result.jaccard_by_chance == pytest.approx(0.2 * 0.05 / (0.2 + 0.05 - 0.2 * 0.05), rel=0.01)
    assert result.jaccard == pytest.approx(result.jaccard_by_chance, rel=0.03)
    assert result.of_first == pytest.approx(result.of_first_by_chance, rel=0.03)
    assert result.of_second == pytest.approx(result.of_second_by_chance, rel=0.03)


def test_nothing_overlaps_with_nothing() -> None:
    empty = diff({"x": torch.zeros(3)}, {"x": torch.zeros(3)})
    numbers = overlap(empty, empty).to_dict()
    assert {value for value in numbers["coordinates"].values() if isinstance(value, float)} == {0.0}
    assert json.loads(json.dumps(numbers, allow_nan=False)) == numbers


def test_other_tensors_are_refused() -> None:
    a = diff({"x": torch.zeros(3)}, {"x": torch.zeros(3)})
    with pytest.raises(LayoutError, match="resized"):
        overlap(a, diff({"x": torch.zeros(4)}, {"x": torch.zeros(4)}))
    tied = Delta(diff({"x": torch.zeros(3)}, {"x": torch.ones(3)}).values(), aliases={"y": "x"})
    apart = diff({"x": torch.zeros(3), "y": torch.zeros(3)}, {"x": torch.zeros(3), "y": torch.zeros(3)})
    with pytest.raises(LayoutError, match="tied"):
        overlap(tied, apart)


def mlp(channels: int = 20, hidden: int = 3, layers: int = 2) -> dict[str, torch.Tensor]:
    shapes = {"gate_proj": (channels, hidden), "up_proj": (channels, hidden), "down_proj": (hidden, channels)}
    return {
        f"model.layers.{layer}.mlp.{part}.weight": torch.zeros(shape)
        for layer in range(layers)
        for part, shape in shapes.items()
    }


def test_a_neuron_is_its_rows_in_and_its_column_out() -> None:
    torch.manual_seed(0)
    base = mlp()
    edits = {name: torch.randn_like(tensor) for name, tensor in base.items()}
    found = neuron_edits(edited(base, edits))
    assert list(found) == ["model.layers.0.mlp", "model.layers.1.mlp"]
    for block, sizes in found.items():
        gate, up, down = (edits[f"{block}.{part}.weight"].double() for part in ("gate_proj", "up_proj", "down_proj"))
        expected = (gate.square().sum(1) + up.square().sum(1) + down.square().sum(0)).sqrt()
        torch.testing.assert_close(sizes, expected)


def test_packed_gate_and_up_rows_belong_to_the_same_channels() -> None:
    base = {"mlp.gate_up_proj.weight": torch.zeros(8, 3), "mlp.down_proj.weight": torch.zeros(3, 4)}
    edit = torch.zeros(8, 3)
    edit[1, 0], edit[5, 2] = 3.0, 4.0
    assert neuron_edits(edited(base, {"mlp.gate_up_proj.weight": edit}))["mlp"].tolist() == [0, 5, 0, 0]


def test_top_neurons_of_two_deltas_are_compared() -> None:
    base = mlp(channels=20, layers=1)
    up = "model.layers.0.mlp.up_proj.weight"
    a, b = torch.zeros(20, 3), torch.zeros(20, 3)
    a[[2, 5, 7], 0] = torch.tensor([3.0, 2.0, 1.0])
    b[[2, 9, 5], 1] = torch.tensor([1.0, 2.0, 0.5])
    result = overlap(edited(base, {up: a}), edited(base, {up: b})).neurons
    assert result == SetOverlap(population=20, first=2, second=2, common=1)
    assert result.jaccard == 1 / 3
    assert result.jaccard_by_chance == pytest.approx(0.1 * 0.1 / 0.19)


def test_unchanged_neurons_are_never_at_the_top_and_ties_go_to_the_first() -> None:
    assert top_neurons({}).tolist() == []
    assert top_neurons({"m": torch.tensor([0.0, 0.0, 2.0], dtype=torch.float64)}, 1.0).tolist() == [False, False, True]
    assert top_neurons({"m": torch.ones(4, dtype=torch.float64)}, 0.5).tolist() == [True, True, False, False]


def test_an_edit_that_is_not_finite_is_the_largest() -> None:
    base = mlp(channels=20, layers=1)
    edit = torch.zeros(3, 20)
    edit[1, 4], edit[0, 6] = math.nan, 1e6
    found = neuron_edits(edited(base, {"model.layers.0.mlp.down_proj.weight": edit}))["model.layers.0.mlp"]
    assert found[4] == math.inf
    assert top_neurons({"m": found}, 0.05).nonzero().flatten().tolist() == [4]


@pytest.mark.parametrize(
    "base",
    [
        {"mlp.experts.gate_up_proj": torch.zeros(2, 3, 8), "mlp.experts.down_proj": torch.zeros(2, 4, 3)},
        {"mlp.up_proj.weight": torch.zeros(5, 3), "mlp.down_proj.weight": torch.zeros(3, 4)},
        {"mlp.up_proj.weight": torch.zeros(4, 3)},
        {"mlp.down_proj.weight": torch.zeros(3, 4)},
        {"mlp.up_proj.weight": torch.zeros(0, 3), "mlp.down_proj.weight": torch.zeros(3, 0)},
    ],
    ids=["packed experts", "other widths", "no way out", "no way in", "no channels"],
)
def test_channels_that_cannot_be_told_are_left_out(base: dict[str, torch.Tensor]) -> None:
    delta = diff(base, {name: tensor + 1 for name, tensor in base.items()})
    assert neuron_edits(delta) == {}
    assert overlap(delta, delta).neurons == SetOverlap(0, 0, 0, 0)
