from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlforget_kernels.conflict_score import SCORES, conflict_score, foreach_conflict_score, reference
from tests.gpu.placement import on_device
from tests.kernels.strategies import LAYOUTS, same_bits, seeds, shapes
from tests.kernels.test_conflict_score import inputs

pytestmark = pytest.mark.gpu


@given(
    score=st.sampled_from(sorted(SCORES)),
    shape=shapes,
    seed=seeds,
    layouts=st.tuples(*[st.sampled_from(LAYOUTS)] * 4),
    damping=st.sampled_from([0.0, 0.1, float("inf")]),
    offset=st.sampled_from([0, 1, 2**40]),
)
@settings(max_examples=200)
def test_equals_reference(
    score: str, shape: tuple[int, ...], seed: int, layouts: tuple[str, ...], damping: float, offset: int
):
    given = inputs(shape, seed, layouts)
    numbers = {"damping": damping, "seed": seed, "offset": offset}
    expected = reference.conflict_score(score=score, **given, **numbers)
    found = conflict_score(score=score, **{name: on_device(tensor) for name, tensor in given.items()}, **numbers)
    assert all(same_bits(ours.cpu(), theirs) for ours, theirs in zip(found, expected, strict=True))


def test_many_deltas_at_once():
    listed = [inputs((17 * k, 33), k) for k in range(60)]
    columns = {name: [one[name] for one in listed] for name in listed[0]}
    placed = {name: [on_device(tensor) for tensor in column] for name, column in columns.items()}
    names = ("delta", "earlier", "later", "direction")
    (delta, *others), (their_delta, *their_others) = ([side[name] for name in names] for side in (placed, columns))
    found, histogram = foreach_conflict_score(delta, "two_fisher", *others, 0.1)
    expected, their_histogram = foreach_conflict_score(their_delta, "two_fisher", *their_others, 0.1)
    assert all(same_bits(ours.cpu(), theirs) for ours, theirs in zip(found, expected, strict=True))
    assert torch.equal(histogram.cpu(), their_histogram)


def test_more_than_two_to_the_31_coordinates():
    delta = torch.ones(2**31 + 4099, device="cuda")
    scores, histogram = conflict_score(delta, "magnitude")
    assert histogram[0x3F800000 >> 19] == delta.numel()
    assert (scores == 1).all()
