"""Conflict scores by their definitions, and one threshold over all tensors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlforget.delta import Delta, diff
from rlforget.errors import ConfigError, CoordinateError, LayoutError, NonFiniteError, UnknownNameError
from rlforget.interference import SCORES, ConflictSubspace, Coordinates, Fisher, conflict
from rlforget.interference.selection import apportioned

SHAPES = {"a": (5, 4), "b": (7,), "same": (3,), "c": ()}


def weights(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.zeros(shape) if name == "same" else torch.randn(shape, generator=generator)
        for name, shape in SHAPES.items()
    }


def some(before: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Weights that differ from `before` at about half of the coordinates."""
    other = weights(seed)
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.where(torch.rand(value.shape, generator=generator) < 0.6, other[name], value)
        for name, value in before.items()
    }


def random_fisher(delta: Delta, seed: int) -> Fisher:
    generator = torch.Generator().manual_seed(seed)

    def draw(sign: bool) -> dict[str, Tensor]:
        return {
            name: (torch.randn if sign else torch.rand)(tensor.changed, generator=generator)
            for name, tensor in delta.items()
            if tensor.changed
        }

    return Fisher(draw(False), draw(True), 8)


@pytest.fixture
def delta() -> Delta:
    base = weights(0)
    return diff(base, some(base, 1))


def joined(parts: dict[str, Tensor]) -> Tensor:
    return torch.cat(list(parts.values())).double()


def change(delta: Delta) -> Tensor:
    return torch.cat([tensor.values for tensor in delta.values()]).double()


def test_scores_are_the_formulas(delta: Delta) -> None:
    d = change(delta)
    one, two = random_fisher(delta, 2), random_fisher(delta, 3)
    f_a, g_a, f_b = joined(one.values), joined(one.gradient), joined(two.values)
    base = weights(0)
    own = diff(base, some(base, 4))
    # The own update at the delta's coordinates, by the dense way.
    dense = {name: torch.zeros(tensor.numel) for name, tensor in own.items()}
    for name, tensor in own.items():
        dense[name][tensor.indices.long()] = tensor.values
    d_a = torch.cat([dense[name][tensor.indices.long()] for name, tensor in delta.items()]).double()
    generator = torch.Generator().manual_seed(5)
    u = {name: torch.randn(SHAPES[name], generator=generator) for name in ("a", "b")}
    u_at = torch.cat(
        [
            u[name].flatten()[tensor.indices.long()] if name in u else torch.zeros(tensor.changed)
            for name, tensor in delta.items()
        ]
    ).double()
    expected = {
        "fisher": f_a * d**2,
        "taylor": (g_a * d + 0.5 * f_a * d**2).clamp_min(0),
        "opposed": torch.where(d_a * d < 0, (d_a * d).abs(), 0.0),
        "two_fisher": f_a * d**2 / (f_b + 0.1 * f_b.mean()),
        "subspace": (u_at * d).clamp_min(0),
        "magnitude": d.abs(),
    }
    given: dict[str, Any] = {"earlier": one, "later": two, "own": own, "subspace": ConflictSubspace(u, (), {})}
    for score, values in expected.items():
        found = conflict(delta, score=score, epsilon=0.1, **given)
        assert found.score == score
        torch.testing.assert_close(joined(found.scores), values, rtol=1e-5, atol=1e-6)
        assert (values > 0).any()
    assert set(expected) | {"random"} == set(SCORES)


def test_random_is_uniform_and_seeded() -> None:
    big = diff({"a": torch.zeros(4000), "b": torch.zeros(4000)}, {"a": torch.ones(4000), "b": torch.ones(4000)})
    first, again, other = (conflict(big, score="random", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.scores["a"], again.scores["a"])
    assert not torch.equal(first.scores["a"], other.scores["a"])
    assert not torch.equal(first.scores["a"], first.scores["b"])
    values = joined(first.scores)
    assert abs(float(values.mean()) - 0.5) < 0.02
    assert 0 <= float(values.min()) < float(values.max()) < 1
    assert abs(len(first.top(count=4000)["a"]) - 2000) < 200


def test_the_default_score(delta: Delta) -> None:
    one = random_fisher(delta, 2)
    assert conflict(delta, earlier=one, later=one).score == "two_fisher"
    subspace = ConflictSubspace({"a": torch.ones(5, 4)}, (), {})
    assert conflict(delta, subspace=subspace).score == "subspace"


def test_several_domains_are_divided_by_their_means(delta: Delta) -> None:
    one, two = random_fisher(delta, 2), random_fisher(delta, 3)
    loud = Fisher({n: 1000 * v for n, v in two.values.items()}, {n: 1000 * v for n, v in two.gradient.items()}, 8)
    expected = joined(one.values) / one.mean + joined(two.values) / two.mean
    found = conflict(delta, score="fisher", earlier=[one, loud])
    torch.testing.assert_close(joined(found.scores), expected * change(delta) ** 2, rtol=1e-5, atol=1e-6)
    both = conflict(delta, earlier=[one], later=[two, loud], epsilon=10.0)
    alone = conflict(delta, earlier=one, later=two, epsilon=10.0)
    assert torch.equal(both.top(count=5).positions(delta)["a"], alone.top(count=5).positions(delta)["a"])


@settings(max_examples=25)
@given(st.data(), st.integers(0, 100))
def test_top_is_one_threshold_over_all_tensors(data: st.DataObject, seed: int) -> None:
    base = weights(seed)
    after = {name: (value * 2).round() / 2 for name, value in some(base, seed + 1).items()}  # few values: ties
    base = {name: (value * 2).round() / 2 for name, value in base.items()}
    delta = diff(base, after)
    if not delta.changed:
        return
    count = data.draw(st.integers(1, delta.changed))
    picked = conflict(delta, score="magnitude").top(count=count)
    magnitudes = change(delta).abs()
    wanted = min(count, int((magnitudes > 0).sum()))  # −0.0 to 0.0 is a change of bits that scores 0
    assert picked.count == wanted
    positions = picked.positions(delta)
    order = torch.sort(magnitudes, descending=True, stable=True).indices[:wanted].sort().values  # ties: lowest first
    start, found = 0, []
    for name, tensor in delta.items():
        found.append(positions.get(name, torch.empty(0, dtype=torch.int64)) + start)
        start += tensor.changed
    assert torch.equal(torch.cat(found), order)


LAYERED = {
    "layers.0.a": (8, 5),
    "layers.0.b": (10,),
    "layers.1.a": (6, 5),
    "embed": (4, 5),
    "norm": (5,),
}


def layered(seed: int) -> Delta:
    generator = torch.Generator().manual_seed(seed)
    before = {name: torch.zeros(shape) for name, shape in LAYERED.items()}
    after = {name: torch.randn(shape, generator=generator) for name, shape in LAYERED.items()}
    after["layers.1.a"] = torch.where(torch.rand(6, 5, generator=generator) < 0.1, after["layers.1.a"], 0.0)
    return diff(before, after)


@settings(max_examples=15)
@given(st.integers(0, 50), st.sampled_from(["layer", "tensor"]), st.floats(0.01, 1.0))
def test_a_budget_for_each_layer_or_tensor(seed: int, per: Any, fraction: float) -> None:
    delta = layered(seed)
    scored = conflict(delta, score="magnitude")
    picked = scored.top(fraction, per=per)
    groups = [[name] for name in LAYERED]
    if per == "layer":
        groups = [["layers.0.a", "layers.0.b"], ["layers.1.a"], ["embed", "norm"]]
    for group in groups:
        exact = fraction * sum(delta[name].numel for name in group)
        changed = sum(delta[name].changed for name in group)
        found = sum(len(picked.get(name, ())) for name in group)
        assert found <= changed
        assert abs(found - min(exact, changed)) <= 1
        least = min((abs_at(delta, name, picked[name]).min() for name in group if name in picked), default=torch.inf)
        left = [set(delta[name].indices.tolist()) - set(picked.get(name, torch.empty(0)).tolist()) for name in group]
        for name, rest in zip(group, left, strict=True):
            assert bool((abs_at(delta, name, torch.tensor(sorted(rest), dtype=torch.int64)) <= least).all())
    assert picked.count <= max(1, round(fraction * delta.numel))


def abs_at(delta: Delta, name: str, indices: Tensor) -> Tensor:
    return delta[name].values[delta[name].positions(indices)].abs()


@pytest.mark.parametrize("per", ["model", "layer", "tensor"])
def test_only_within_a_set(per: Any) -> None:
    delta = layered(0)
    scored = conflict(delta, score="magnitude")
    within = Coordinates({"layers.0.a": torch.arange(0, 40, 2), "embed": torch.arange(3), "norm": torch.tensor([4])})
    everything = scored.top(1.0, per=per, within=within)
    assert {name: indices.tolist() for name, indices in everything.items()} == {
        name: indices.tolist() for name, indices in within.items()
    }
    few = scored.top(count=9, per=per, within=within)
    assert few.count <= 9
    assert all(set(few[name].tolist()) <= set(within[name].tolist()) for name in few)
    if per == "model":
        assert few.count == 9
        magnitudes = torch.cat([abs_at(delta, name, indices) for name, indices in within.items()])
        picked = torch.cat([abs_at(delta, name, indices) for name, indices in few.items()])
        assert torch.equal(picked.sort().values, magnitudes.sort().values[-9:])
    unchanged = Coordinates({"layers.1.a": torch.arange(30)})
    assert scored.top(1.0, within=unchanged).count == delta["layers.1.a"].changed
    with pytest.raises(CoordinateError, match="does not hold"):
        scored.top(1.0, within=Coordinates({"elsewhere": torch.tensor([0])}))
    with pytest.raises(UnknownNameError, match="per 'row'"):
        scored.top(1.0, per="row")  # type: ignore[arg-type]


@given(st.integers(0, 10_000), st.lists(st.integers(0, 500), max_size=8))
def test_apportioned(total: int, sizes: list[int]) -> None:
    shares = apportioned(total, sizes)
    assert sum(shares) == (total if sum(sizes) else 0)
    assert all(abs(share - total * size / max(sum(sizes), 1)) < 1 for share, size in zip(shares, sizes, strict=True))


def test_fraction_is_of_all_coordinates(delta: Delta) -> None:
    scored = conflict(delta, score="magnitude")
    assert delta.changed < delta.numel
    assert scored.top(fraction=0.2).count == round(0.2 * delta.numel)
    assert scored.top(0.2).count == round(0.2 * delta.numel)
    assert scored.top(fraction=1.0).count == scored.changed == delta.changed
    assert scored.top(fraction=1e-9).count == 1


@pytest.mark.parametrize(
    "arguments", [{"fraction": 0.0}, {"fraction": 1.1}, {"fraction": -1.0}, {"fraction": float("nan")}, {"count": 0},
                  {"count": 10_000}, {}, {"fraction": 0.1, "count": 1}]
)  # fmt: skip
def test_top_refuses(delta: Delta, arguments: dict[str, Any]) -> None:
    with pytest.raises(CoordinateError):
        conflict(delta, score="magnitude").top(**arguments)


def test_unknown_score_lists_the_known_ones(delta: Delta) -> None:
    with pytest.raises(UnknownNameError) as fault:
        conflict(delta, score="fischer")
    assert all(score in str(fault.value) for score in SCORES)


@pytest.mark.parametrize(
    ("score", "missing"),
    [
        ("fisher", "earlier"),
        ("taylor", "earlier"),
        ("two_fisher", "later"),
        ("opposed", "own"),
        ("subspace", "subspace"),
    ],
)
def test_a_missing_argument_is_named(delta: Delta, score: str, missing: str) -> None:
    given: dict[str, Any] = {"earlier": random_fisher(delta, 2), "later": random_fisher(delta, 3)}
    given.pop(missing, None)
    with pytest.raises(ConfigError, match=f"the argument {missing}"):
        conflict(delta, score=score, **given)


def test_taylor_is_about_the_earlier_end(delta: Delta) -> None:
    half_way = replace(random_fisher(delta, 2), where="midpoint")
    with pytest.raises(ConfigError, match='where="earlier"'):
        conflict(delta, score="taylor", earlier=[half_way])
    assert conflict(delta, score="fisher", earlier=[half_way]).scores


def test_parts_of_another_delta_are_refused(delta: Delta) -> None:
    base = weights(0)
    other = diff(base, some(base, 9))
    with pytest.raises(LayoutError, match="Fisher"):
        conflict(delta, score="fisher", earlier=random_fisher(other, 2))
    with pytest.raises(LayoutError, match="own update"):
        conflict(delta, score="opposed", own=diff({"a": base["a"]}, {"a": base["a"] + 1}))
    with pytest.raises(LayoutError, match="correction"):
        conflict(delta, subspace=ConflictSubspace({"a": torch.ones(4, 5)}, (), {}))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_score_that_is_no_number_names_its_tensor(delta: Delta, bad: float) -> None:
    one = random_fisher(delta, 2)
    one.values["b"][0] = bad
    with pytest.raises(NonFiniteError, match="'b'"):
        conflict(delta, score="fisher", earlier=one)


def test_a_delta_without_changes() -> None:
    empty = diff(weights(0), weights(0))
    with pytest.raises(CoordinateError):
        conflict(empty, score="magnitude").top(count=1)
