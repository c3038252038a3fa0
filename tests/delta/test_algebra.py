"""The algebra of deltas equals doing the same on weights."""

from __future__ import annotations

import dataclasses
import itertools
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlforget.delta import Delta, apply, diff
from rlforget.delta.composed import ComposedWeights
from rlforget.delta.layers import MemoryLayer
from rlforget.errors import CoordinateError, LayoutError, UnknownNameError, WrongBaseError
from rlforget.weights import DTYPES, open_weights
from tests.delta.random_weights import Tensors, names, random_tensor, same_bits, shapes, tuned


@st.composite
def stages(draw: st.DrawFn, count: int) -> list[Tensors]:
    """Draw a model after each of some fine-tunes, which may also add, drop, resize and retype tensors."""
    rng = random.Random(draw(st.integers(0, 2**32)))
    metas = st.tuples(st.sampled_from(DTYPES), shapes)
    every = draw(st.dictionaries(names, metas, min_size=1, max_size=5))
    first = next(iter(every))  # always there, so that two stages have something in common
    found: list[Tensors] = []
    for _ in range(count):
        stage: Tensors = {}
        for name, (dtype, shape) in every.items():
            before = found[-1].get(name) if found else None
            fate = draw(st.sampled_from(["tune", "tune", "tune", "keep", "drop", "new"]))
            if name == first and fate in ("drop", "new"):
                fate = "tune"
            if fate == "drop":
                continue
            if before is None or fate == "new":
                kind = draw(metas) if fate == "new" and before is not None else (dtype, shape)
                stage[name] = random_tensor(*kind, rng)
            else:
                stage[name] = tuned(before, 0.0 if fate == "keep" else 0.4, rng)
        found.append(stage)
    return found


def clones(tensors: Tensors) -> Tensors:
    return {name: tensor.clone() for name, tensor in tensors.items()}


def equal(a: Tensors, b: Tensors) -> bool:
    return a.keys() == b.keys() and all(same_bits(a[name], b[name]) for name in a)


def composed(base: Tensors, *deltas: Delta) -> Tensors:
    weights = ComposedWeights(open_weights(base), [MemoryLayer(delta) for delta in deltas])
    return {name: weights.tensor(name) for name in weights.names()}


@given(stages(3))
def test_one_after_another_is_the_difference_of_the_outer_ends(three: list[Tensors]) -> None:
    first, second, third = three
    joined = diff(first, second).then(diff(second, third))
    assert joined == diff(first, third)
    assert joined.fingerprint_before == diff(first, third).fingerprint_before
    assert joined.fingerprint_after == diff(first, third).fingerprint_after


@given(stages(2))
def test_the_inverse_is_the_difference_the_other_way(two: list[Tensors]) -> None:
    first, second = two
    delta = diff(first, second)
    assert delta.invert() == diff(second, first)
    assert delta.invert().invert() == delta
    assert delta.then(delta.invert()).changed == 0


@given(stages(4))
def test_a_chain_composed_while_it_is_read_is_its_end(four: list[Tensors]) -> None:
    deltas = [diff(a, b) for a, b in itertools.pairwise(four)]
    assert equal(composed(four[0], *deltas), four[-1])
    assert equal(composed(four[-1], *(delta.invert() for delta in reversed(deltas))), four[0])


@given(stages(2), st.randoms(use_true_random=False))
def test_a_part_of_a_delta_changes_just_that(two: list[Tensors], rng: random.Random) -> None:
    first, second = two
    delta = diff(first, second)
    chosen = [name for name in [*delta, *delta.whole] if rng.random() < 0.5]
    expected = {name: tensor for name, tensor in first.items() if name not in chosen}
    expected |= {name: second[name] for name in chosen if name in second}
    assert equal(composed(first, delta.restrict(chosen)), expected)
    assert delta.restrict(chosen).then(delta.restrict(chosen).invert()).changed == 0

    some = {name: tensor.indices[:: rng.choice([1, 2])] for name, tensor in delta.items()}
    expected = {name: tensor.clone() for name, tensor in first.items()}
    for name, indices in some.items():
        width = expected[name].itemsize
        new, old = (t.reshape(-1).view(torch.uint8).view(-1, width) for t in (second[name], expected[name]))
        old[indices.long()] = new[indices.long()]
    assert equal(composed(first, delta.restrict(some)), expected)


@given(stages(2), st.randoms(use_true_random=False))
def test_disjoint_parts_add_up_to_the_whole(two: list[Tensors], rng: random.Random) -> None:
    delta = diff(*two)
    mine: dict[str, torch.Tensor] = {}
    others: dict[str, torch.Tensor] = {}
    for name, tensor in delta.items():
        pick = torch.tensor([rng.random() < 0.5 for _ in range(tensor.changed)], dtype=torch.bool)
        mine[name], others[name] = tensor.indices[pick], tensor.indices[~pick]
    parts = [delta.restrict(mine), delta.restrict(others)]
    parts += [delta.restrict([name]) for name in delta.whole]
    assert Delta.sum(parts) == delta
    assert Delta.sum(reversed(parts)) == delta


def test_two_changes_of_one_coordinate_do_not_add() -> None:
    before = {"a": torch.zeros(3)}
    one, other = diff(before, {"a": torch.tensor([1.0, 0, 0])}), diff(before, {"a": torch.tensor([2.0, 1, 0])})
    with pytest.raises(CoordinateError, match="a coordinate of 'a'"):
        Delta.sum([one, other])
    assert Delta.sum([one, other.restrict({"a": torch.tensor([1])})])["a"].indices.tolist() == [0, 1]
    with pytest.raises(WrongBaseError, match="begin with other bits"):
        Delta.sum([one, one.invert()])
    assert Delta.sum([]).changed == 0


def test_a_delta_joins_only_what_begins_where_it_ends() -> None:
    first, second = {"a": torch.zeros(3)}, {"a": torch.ones(3)}
    delta = diff(first, second)
    with pytest.raises(WrongBaseError, match="the later delta of 'a'"):
        delta.then(delta)
    with pytest.raises(LayoutError, match="'a'"):
        delta.then(diff({"b": torch.zeros(1)}, {"b": torch.ones(1)}))
    with pytest.raises(UnknownNameError, match="'x'"):
        delta.restrict(["x"])
    with pytest.raises(CoordinateError, match="coordinate 7"):
        delta.restrict({"a": torch.tensor([7])})


def test_renamed_tensors_keep_their_changes() -> None:
    first = {"old": torch.arange(4.0), "same": torch.zeros(2)}
    second = {"new": torch.tensor([0.0, 9, 2, 3]), "same": torch.zeros(2)}
    third = {"newest": torch.tensor([0.0, 9, 9, 3]), "same": torch.ones(2)}
    delta = diff(first, second, rename={"old": "new"})
    assert delta.renamed == {"old": "new"}
    assert not delta.whole
    assert delta["old"].indices.tolist() == [1]
    assert equal(composed(first, delta), second)
    assert delta.invert() == diff(second, first, rename={"new": "old"})
    chain = delta.then(diff(second, third, rename={"new": "newest"}))
    assert chain == diff(first, third, rename={"old": "newest"})
    assert equal(composed(third, chain.invert()), first)
    with pytest.raises(LayoutError, match="renames 1"):
        apply(clones(first), delta)
    with pytest.raises(UnknownNameError, match="'gone'"):
        diff(first, second, rename={"gone": "new"})


def test_weights_without_a_tensor_in_common_are_refused() -> None:
    with pytest.raises(LayoutError, match="none of them among its 1"):
        diff({"a": torch.zeros(1)}, {"b": torch.zeros(1)})


def test_a_tied_tensor_that_is_resized_stays_tied() -> None:
    before, after = torch.zeros(3, 2), torch.ones(4, 2)
    delta = diff({"embed": before, "head": before}, {"embed": after, "head": after})
    assert list(delta.whole) == ["embed"]
    weights = ComposedWeights(open_weights({"embed": before, "head": before}), [MemoryLayer(delta)])
    assert weights.names() == ["embed"]
    assert dict(weights.aliases) == {"head": "embed"}
    assert same_bits(weights.tensor("head"), after)


def test_names_that_the_way_back_could_not_tell_apart_are_refused() -> None:
    before = {"a": torch.zeros(3), "b": torch.ones(3), "c": torch.zeros(1)}
    with pytest.raises(LayoutError, match="takes the name of one that is dropped"):
        diff(before, {"a": torch.ones(3), "c": torch.zeros(1)}, rename={"b": "a"})
    with pytest.raises(LayoutError, match="two tensors called 'b' before"):
        diff({"b": torch.zeros(2), "c": torch.zeros(1)}, {"x": torch.zeros(2), "b": torch.ones(1)}, rename={"b": "x"})
    renamed = diff({"a": torch.zeros(2)}, {"b": torch.zeros(2)}, rename={"a": "b"})
    with pytest.raises(LayoutError, match="two tensors called"):
        renamed.then(diff({"b": torch.zeros(2)}, {"b": torch.zeros(2), "a": torch.ones(1)}))
    swapped = diff(
        {"a": torch.zeros(2), "b": torch.ones(2)},
        {"b": torch.zeros(2), "a": torch.ones(2)},
        rename={"a": "b", "b": "a"},
    )
    assert swapped.changed == 0
    with pytest.raises(LayoutError, match="two tensors called 'b' after"):
        swapped.restrict(["a"])


def test_a_tensor_that_came_and_was_renamed_came_by_its_last_name() -> None:
    first, second = {"x": torch.zeros(1)}, {"x": torch.zeros(1), "n": torch.ones(2)}
    third = {"x": torch.zeros(1), "m": torch.ones(2)}
    joined = diff(first, second).then(diff(second, third, rename={"n": "m"}))
    assert joined == diff(first, third)
    assert equal(composed(first, joined), third)


def test_coordinates_of_a_part_may_come_in_any_order_twice_and_under_two_names() -> None:
    shared, tuned_shared = torch.zeros(8), torch.arange(8.0)
    before = {"embed": shared, "head": shared}
    delta = diff(before, {"embed": tuned_shared, "head": tuned_shared})
    part = delta.restrict({"embed": torch.tensor([5, 2, 5]), "head": torch.tensor([7])})
    assert part["embed"].indices.tolist() == [2, 5, 7]
    after = clones(before)
    apply(after, part)
    assert diff(before, after)["embed"] == part["embed"]
    with pytest.raises(CoordinateError, match="ascend"):
        dataclasses.replace(part["embed"], indices=part["embed"].indices.flip(0))


def test_a_delta_does_not_change_with_the_weights_it_was_made_from() -> None:
    before = {"a": torch.zeros(2), "gone": torch.ones(3)}
    delta = diff(before, {"a": torch.ones(2)})
    before["gone"].fill_(5)
    assert delta.whole["gone"].before is not None
    assert delta.whole["gone"].before.tolist() == [1, 1, 1]
