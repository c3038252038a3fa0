from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlforget_kernels.select_top import reference, score_histogram, select_top
from tests.gpu.placement import on_device
from tests.kernels.strategies import same_bits
from tests.kernels.test_select_top import score_lists

pytestmark = pytest.mark.gpu


@given(scores=score_lists(), share=st.sampled_from([0.0, 0.02, 0.5, 1.0]), given_histogram=st.booleans())
@settings(max_examples=200)
def test_equals_a_stable_sort(scores: list[Tensor], share: float, given_histogram: bool):
    count = round(share * sum(score.numel() for score in scores))
    placed = [on_device(score) for score in scores]
    found = select_top(placed, count, sum(map(score_histogram, placed)) if given_histogram else None)
    expected = reference.select_top(scores, count)
    assert all(same_bits(ours.cpu(), theirs) for ours, theirs in zip(found, expected, strict=True))


def test_a_fault_names_its_tensor():
    scores = [torch.ones(5, device="cuda"), torch.tensor([1.0, float("nan")], device="cuda")]
    with pytest.raises(ValueError, match=r"scores\[1\]"):
        select_top(scores, 1)


def test_more_than_two_to_the_31_scores():
    scores = torch.zeros(2**31 + 4099, device="cuda")
    largest = torch.tensor([3, 2**31 + 5, scores.numel() - 1], device="cuda")
    scores[largest] = torch.tensor([1.0, 2.0, 3.0], device="cuda")
    (found,) = select_top([scores], 5)
    assert found.tolist() == [0, 1, *largest.tolist()]
